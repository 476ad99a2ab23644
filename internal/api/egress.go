package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"weir/internal/engine"
	"weir/internal/state"
)

// EgressController is the running weir as far as egress pools go. Its methods may be called
// from several goroutines.
type EgressController interface {
	// Egress returns what view's pools have in use, or the one of that name.
	Egress(ctx context.Context, view engine.View, pool string) (engine.EgressStatus, error)
	// DrainAddress and EnableAddress take an operator's word of an address
	// (engine.Loop.DrainAddress). What they refuse is an *Error.
	DrainAddress(ctx context.Context, by *state.Operator, a netip.Addr, until time.Time) error
	EnableAddress(ctx context.Context, by *state.Operator, a netip.Addr) error
}

// EgressWord is what an address of a pool is after an operator's word.
type EgressWord struct {
	Pool string `json:"pool"`
	engine.EgressAddress
	Applied bool `json:"applied"` // as in Backend
}

// drainAddressRequest is a body.
type drainAddressRequest struct {
	Address  string `json:"address"`
	Deadline string `json:"deadline,omitempty"` // a Go duration; "": until the last connection ends
}

// addressRequest is a body.
type addressRequest struct {
	Address string `json:"address"`
}

// Egress asks what all egress pools have in use, or one.
func (c *Client) Egress(ctx context.Context, pool string) (engine.EgressStatus, error) {
	path := "/v1/egress"
	if pool != "" {
		path += "?pool=" + url.QueryEscape(pool)
	}
	return ask[engine.EgressStatus](ctx, c, "GET", path, nil)
}

// DrainAddress gives an address of a pool no new connections; those that are open end by
// themselves, or when the deadline is over (0: none).
func (c *Client) DrainAddress(ctx context.Context, address string, deadline time.Duration) (EgressWord, error) {
	body := drainAddressRequest{Address: address}
	if deadline != 0 {
		body.Deadline = deadline.String()
	}
	return ask[EgressWord](ctx, c, "POST", "/v1/egress/drain", body)
}

// EnableAddress takes DrainAddress back.
func (c *Client) EnableAddress(ctx context.Context, address string) (EgressWord, error) {
	return ask[EgressWord](ctx, c, "POST", "/v1/egress/enable", addressRequest{address})
}

func (s *Server) egressRoutes() {
	s.route("GET", "/v1/egress", s.egress)
	s.route("POST", "/v1/egress/drain", s.drainAddress)
	s.route("POST", "/v1/egress/enable", s.enableAddress)
}

func (s *Server) egress(ctx context.Context, r *http.Request) (any, error) {
	q, err := query(r, "pool")
	if err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	if name, ok := q["pool"]; ok && view.Config.Pool(name) == nil {
		var names []string
		for _, p := range view.Config.Egress {
			names = append(names, p.Name)
		}
		msg := fmt.Sprintf("there is no egress pool %s", quote(name))
		if len(names) > 0 {
			msg += "; there are: " + strings.Join(names[:min(len(names), maxNamed)], ", ")
		}
		return nil, &Error{Code: http.StatusNotFound, Message: msg}
	}
	return s.weir.Egress(ctx, view, q["pool"])
}

func parseAddress(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return a, badRequest("%s is not an address; want one of an egress pool, such as 192.0.2.7", quote(text))
	}
	return a, nil
}

func (s *Server) drainAddress(ctx context.Context, r *http.Request) (any, error) {
	var body drainAddressRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	a, err := parseAddress(body.Address)
	if err != nil {
		return nil, err
	}
	var until time.Time
	if body.Deadline != "" {
		d, err := time.ParseDuration(body.Deadline)
		if err != nil || d <= 0 || d > maxDeadline {
			return nil, badRequest("deadline %s is not allowed; want a time such as 90s, 10m or 1h30m, up to 8760h", quote(body.Deadline))
		}
		until = time.Now().Round(0).Add(d)
	}
	if err := s.weir.DrainAddress(ctx, peer(ctx), a, until); err != nil {
		return nil, err
	}
	return s.word(ctx, a)
}

func (s *Server) enableAddress(ctx context.Context, r *http.Request) (any, error) {
	var body addressRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	a, err := parseAddress(body.Address)
	if err != nil {
		return nil, err
	}
	if err := s.weir.EnableAddress(ctx, peer(ctx), a); err != nil {
		return nil, err
	}
	return s.word(ctx, a)
}

// word answers with what holds of an address now.
func (s *Server) word(ctx context.Context, a netip.Addr) (any, error) {
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	out := EgressWord{Applied: view.Applied, EgressAddress: engine.EgressAddress{Address: a, State: state.Up}}
	st, err := s.weir.Egress(ctx, view, "")
	if err != nil {
		return nil, err
	}
	for _, p := range st.Pools {
		if i := slices.IndexFunc(p.Addresses, func(o engine.EgressAddress) bool { return o.Address == a }); i >= 0 {
			out.Pool, out.EgressAddress = p.Name, p.Addresses[i]
		}
	}
	return out, nil
}
