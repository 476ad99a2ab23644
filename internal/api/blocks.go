package api

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/lists"
)

// Blocks is all that is known of blocklists.
type Blocks struct {
	Lists    []lists.Status `json:"lists"`
	Operator []lists.Block  `json:"operator"`          // what operators blocked, by prefix
	Applied  *bool          `json:"applied,omitempty"` // as in Backend; nil: no weir runs that would know
}

// Blocked is the answer to what an operator said of addresses.
type Blocked struct {
	Entry   string    `json:"entry"`
	Until   time.Time `json:"until,omitzero"`
	Why     string    `json:"why,omitempty"`
	Applied bool      `json:"applied"` // as in Backend
}

// Top is the entries of blocklists that packets met most.
type Top struct {
	Entries []engine.Hit `json:"entries"` // most packets first
	All     int          `json:"all"`     // entries that any packet met
	At      time.Time    `json:"at"`      // when the counters were read
	// Uncounted is packets that met an entry and were counted for none, because there was no
	// room for another counter.
	Uncounted uint64 `json:"uncounted,omitzero"`
}

// Why is what lists say of an address, and what else applies to it as a source.
type Why struct {
	Address netip.Addr        `json:"address"`
	Action  string            `json:"action"`           // "drop", "reject", "count" or "none"
	Entry   string            `json:"entry,omitempty"`  // what decides, as it counts in the kernel
	Matches []blocklist.Match `json:"matches"`          // entries of lists that hold it, the most specific first
	ReadAt  time.Time         `json:"read_at,omitzero"` // when the list of the first match was read
	Allow   []netip.Prefix    `json:"allow"`            // what lets it through, the most specific first
	Block   *lists.Block      `json:"block,omitempty"`  // what an operator said
	// What the entry has counted, and when that changed last, as far as it is known.
	Packets    uint64    `json:"packets"`
	Bytes      uint64    `json:"bytes"`
	LastChange time.Time `json:"last_change,omitzero"`

	Edge       *SourceEdge       `json:"edge,omitempty"` // nil: the configuration has no access policy
	OverLimits []engine.Offender `json:"over_limits"`    // limits that it was over within the last ten minutes
}

// NewWhy returns what lists say of an address; AddSource adds the rest, but for the counters.
func NewWhy(a netip.Addr, said lists.Answer, status []lists.Status) Why {
	out := Why{Address: a, Action: said.Action.String(), Matches: append([]blocklist.Match{}, said.Matches...),
		Allow: append([]netip.Prefix{}, said.Allow...), Block: said.Block, OverLimits: []engine.Offender{}}
	if said.Action != blocklist.None {
		out.Entry = lists.Block{Prefix: said.Entry.Prefix}.Text()
	}
	if len(said.Matches) > 0 {
		if i := slices.IndexFunc(status, func(s lists.Status) bool { return s.Name == said.Matches[0].List }); i >= 0 {
			out.ReadAt = status[i].ReadAt
		}
	}
	return out
}

// addRequest is a body.
type addRequest struct {
	Entry string `json:"entry"`
	For   string `json:"for,omitempty"` // a Go duration; "": until it is taken back
	Why   string `json:"why,omitempty"`
}

// removeRequest is a body.
type removeRequest struct {
	Entry string `json:"entry"`
}

// acceptRequest is a body.
type acceptRequest struct {
	List string `json:"list"`
}

// maxBlock is the longest time that may be said.
const maxBlock = 10 * 365 * 24 * time.Hour

// ParseEntry reads an address or a prefix without host bits.
func ParseEntry(text string) (netip.Prefix, error) {
	const want = "want an address or a prefix, such as 192.0.2.7 or 192.0.2.0/24"
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" || a.Is4In6() {
			return netip.Prefix{}, badRequest("%s is not allowed; %s", quote(text), want)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, badRequest("%s is not an entry; %s", quote(text), want)
	case p != p.Masked():
		return netip.Prefix{}, badRequest("%s has bits behind its prefix; write %s, or the address alone", quote(text), p.Masked())
	}
	return p, nil
}

func (s *Server) blocks(ctx context.Context, r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	applied := !view.Behind
	return Blocks{Lists: append([]lists.Status{}, view.Lists...), Operator: append([]lists.Block{}, view.Said...), Applied: &applied}, nil
}

func (s *Server) block(ctx context.Context, r *http.Request) (any, error) {
	var body addRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	p, err := ParseEntry(body.Entry)
	if err != nil {
		return nil, err
	}
	b := lists.Block{Prefix: p, Why: body.Why, At: time.Now().Round(0)}
	if body.For != "" {
		d, err := time.ParseDuration(body.For)
		if err != nil || d <= 0 || d > maxBlock {
			return nil, badRequest("for %s is not allowed; want a time such as 90s, 10m or 24h, up to 87600h", quote(body.For))
		}
		b.Until = b.At.Add(d)
	}
	if by := peer(ctx); by != nil {
		b.By = by.String()
	}
	if err := b.Check(); err != nil {
		return nil, badRequest("why: %v", err)
	}
	if err := s.weir.Block(ctx, peer(ctx), b); err != nil {
		return nil, err
	}
	return s.blocked(ctx, b)
}

// blocked answers with what holds of b now.
func (s *Server) blocked(ctx context.Context, b lists.Block) (any, error) {
	view, err := s.weir.View(ctx)
	out := Blocked{Entry: b.Text(), Applied: !view.Behind}
	if i := slices.IndexFunc(view.Said, func(o lists.Block) bool { return o.Prefix == b.Prefix }); i >= 0 {
		out.Until, out.Why = view.Said[i].Until, view.Said[i].Why
	}
	return out, err
}

func (s *Server) unblock(ctx context.Context, r *http.Request) (any, error) {
	var body removeRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	p, err := ParseEntry(body.Entry)
	if err != nil {
		return nil, err
	}
	if err := s.weir.Unblock(ctx, peer(ctx), p); err != nil {
		return nil, err
	}
	return s.blocked(ctx, lists.Block{Prefix: p})
}

func (s *Server) accept(ctx context.Context, r *http.Request) (any, error) {
	var body acceptRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if body.List == "" {
		return nil, badRequest("list is missing; want the name of a blocklist")
	}
	if err := s.weir.Accept(ctx, peer(ctx), body.List); err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(view.Lists, func(l lists.Status) bool { return l.Name == body.List })
	if i < 0 {
		return nil, lists.ErrNoList // a reload in between
	}
	return view.Lists[i], nil
}

func (s *Server) top(ctx context.Context, r *http.Request) (any, error) {
	q, err := query(r, "n", "list")
	if err != nil {
		return nil, err
	}
	n := usualTop
	if text, ok := q["n"]; ok {
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > maxTop {
			return nil, badRequest("n: %s is not allowed; allowed: 1 to %d", quote(text), maxTop)
		}
	}
	if name, ok := q["list"]; ok {
		view, err := s.weir.View(ctx)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, l := range view.Lists {
			names = append(names, l.Name)
		}
		if !slices.Contains(names, name) {
			return nil, &Error{Code: http.StatusNotFound, Message: "there is no blocklist " + quote(name) + "; there are: " + strings.Join(names, ", ")}
		}
	}
	return s.weir.Top(ctx, n, q["list"])
}

func (s *Server) why(ctx context.Context, r *http.Request) (any, error) {
	q, err := query(r, "address")
	if err != nil {
		return nil, err
	}
	a, err := netip.ParseAddr(q["address"])
	if err != nil || a.Zone() != "" {
		return nil, badRequest("address: %s is not an address; want one such as 192.0.2.7 or 2001:db8::7", quote(q["address"]))
	}
	out, err := s.weir.Why(ctx, a.Unmap())
	if err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	over, err := s.weir.Offenders(ctx, view, "")
	if err != nil {
		return nil, err
	}
	out.AddSource(view.Config, over)
	return out, nil
}
