package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weir/internal/engine"
	"weir/internal/lists"
)

// ErrNotRunning says that nobody listens at the socket.
var ErrNotRunning = errors.New("weir is not running here")

// answerWithin bounds every request but those that follow.
const answerWithin = time.Minute

// Client asks the weir that listens at a socket.
type Client struct {
	http   *http.Client
	socket string
}

// NewClient returns a client. It connects when it is asked something.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a command asks once
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Version asks for weir's version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return ask[Version](ctx, c, "GET", "/v1/version", nil)
}

// Status asks for all services, or for one.
func (c *Client) Status(ctx context.Context, service string) (engine.Status, error) {
	path := "/v1/status"
	if service != "" {
		path += "?service=" + url.QueryEscape(service)
	}
	return ask[engine.Status](ctx, c, "GET", path, nil)
}

// Backends asks for what the weights of backends follow from, beyond the configuration.
func (c *Client) Backends(ctx context.Context) (Backends, error) {
	return ask[Backends](ctx, c, "GET", "/v1/backends", nil)
}

// Offenders asks for the sources that were over a limit, of all services or of one.
func (c *Client) Offenders(ctx context.Context, service string) (Offenders, error) {
	path := "/v1/offenders"
	if service != "" {
		path += "?service=" + url.QueryEscape(service)
	}
	return ask[Offenders](ctx, c, "GET", path, nil)
}

// Reload has weir load its configuration again. Mistakes in it are in Error.Errors.
func (c *Client) Reload(ctx context.Context, r ReloadRequest) (Reloaded, error) {
	return ask[Reloaded](ctx, c, "POST", "/v1/reload", r)
}

// Apply has weir load its configuration, which must be that file, and go back by itself
// unless Confirm is said within that time, if there is one.
func (c *Client) Apply(ctx context.Context, r ApplyRequest) (Applied, error) {
	body := applyRequest{ReloadRequest: r.ReloadRequest, File: r.File}
	if r.Confirm != 0 {
		text := r.Confirm.String()
		body.Confirm = &text
	}
	return ask[Applied](ctx, c, "POST", "/v1/apply", body)
}

// Confirm keeps the change that waits.
func (c *Client) Confirm(ctx context.Context) (Confirmed, error) {
	return ask[Confirmed](ctx, c, "POST", "/v1/confirm", nil)
}

// Drain takes a backend out once its connections have ended, or the deadline is over (0:
// none).
func (c *Client) Drain(ctx context.Context, service, backend string, deadline time.Duration) (Backend, error) {
	body := drainRequest{}
	if deadline != 0 {
		body.Deadline = deadline.String()
	}
	return c.say(ctx, service, backend, "drain", body)
}

// Enable takes Drain and Disable back.
func (c *Client) Enable(ctx context.Context, service, backend string) (Backend, error) {
	return c.say(ctx, service, backend, "enable", nil)
}

// Disable takes a backend out, and ends its checks.
func (c *Client) Disable(ctx context.Context, service, backend string) (Backend, error) {
	return c.say(ctx, service, backend, "disable", nil)
}

// Weight gives a backend a weight in place of the file's; nil takes it back.
func (c *Client) Weight(ctx context.Context, service, backend string, weight *int) (Backend, error) {
	return c.say(ctx, service, backend, "weight", map[string]*int{"weight": weight})
}

// Blocks asks for all blocklists and what operators blocked.
func (c *Client) Blocks(ctx context.Context) (Blocks, error) {
	return ask[Blocks](ctx, c, "GET", "/v1/blocks", nil)
}

// Block blocks an address or a prefix, for a time (0: until Unblock).
func (c *Client) Block(ctx context.Context, entry string, within time.Duration, why string) (Blocked, error) {
	body := addRequest{Entry: entry, Why: why}
	if within != 0 {
		body.For = within.String()
	}
	return ask[Blocked](ctx, c, "POST", "/v1/blocks/add", body)
}

// Unblock takes Block back.
func (c *Client) Unblock(ctx context.Context, entry string) (Blocked, error) {
	return ask[Blocked](ctx, c, "POST", "/v1/blocks/remove", removeRequest{entry})
}

// AcceptList has weir take a blocklist as its files are now, however much it changed.
func (c *Client) AcceptList(ctx context.Context, list string) (lists.Status, error) {
	return ask[lists.Status](ctx, c, "POST", "/v1/blocks/accept", acceptRequest{list})
}

// Top asks for the n entries of blocklists that packets met most; list picks one.
func (c *Client) Top(ctx context.Context, n int, list string) (Top, error) {
	q := url.Values{"n": {strconv.Itoa(n)}}
	if list != "" {
		q.Set("list", list)
	}
	return ask[Top](ctx, c, "GET", "/v1/blocks/top?"+q.Encode(), nil)
}

// Why asks what lists say of an address.
func (c *Client) Why(ctx context.Context, a netip.Addr) (Why, error) {
	return ask[Why](ctx, c, "GET", "/v1/why?address="+url.QueryEscape(a.String()), nil)
}

func (c *Client) say(ctx context.Context, service, backend, word string, body any) (Backend, error) {
	return ask[Backend](ctx, c, "POST", "/v1/backends/"+url.PathEscape(service)+"/"+url.PathEscape(backend)+"/"+word, body)
}

// Events calls each for every event after number since that weir still has, and for those
// to come if follow is set, until ctx or weir ends or each returns an error.
func (c *Client) Events(ctx context.Context, since uint64, follow bool, each func(engine.Event) error) error {
	path := fmt.Sprintf("/v1/events?since=%d", since)
	if follow {
		path += "&follow=1"
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerWithin)
		defer cancel()
	}
	body, err := c.open(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for dec := json.NewDecoder(body); ; {
		var e engine.Event
		err := dec.Decode(&e)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// ask sends a request and reads the answer.
func ask[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var out T
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answer, err := c.open(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	defer answer.Close()
	if err := json.NewDecoder(answer).Decode(&out); err != nil {
		return out, fmt.Errorf("the answer of weir: %w", err)
	}
	return out, nil
}

// open sends a request and returns the body of a good answer, else an error: *Error is
// what weir said.
func (c *Client) open(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var text io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		text = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://weir"+path, text)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	said := &Error{Code: res.StatusCode}
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<20)).Decode(said); err != nil || said.Message == "" {
		said.Message = "weir answered " + strings.ToLower(res.Status)
	}
	return nil, said
}

// unreachable says in plain words why there was no answer.
func (c *Client) unreachable(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		err = failed.Err // it says the method and a made-up host
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNotRunning
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: speaking to weir is for root and its own user, or for the group of `weir run --group`", c.socket, fs.ErrPermission)
	}
	return err
}
