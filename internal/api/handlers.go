package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/model"
	"weir/internal/state"
)

func (s *Server) status(ctx context.Context, r *http.Request) (any, error) {
	view, service, err := s.asked(ctx, r)
	if err != nil {
		return nil, err
	}
	return s.weir.Status(ctx, view, service)
}

func (s *Server) offenders(ctx context.Context, r *http.Request) (any, error) {
	view, service, err := s.asked(ctx, r)
	if err != nil {
		return nil, err
	}
	list, err := s.weir.Offenders(ctx, view, service)
	return Offenders{list}, err
}

// asked returns what is known, and the service that a request is about; "" for all.
func (s *Server) asked(ctx context.Context, r *http.Request) (engine.View, string, error) {
	q, err := query(r, "service")
	if err != nil {
		return engine.View{}, "", err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return view, "", err
	}
	if name, ok := q["service"]; ok {
		if _, bad := findService(view.Config, name); bad != nil {
			return view, "", bad
		}
	}
	return view, q["service"], nil
}

func (s *Server) backends(ctx context.Context, r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	return Backends{view.Known(), view.KnownPools()}, nil
}

func (s *Server) reload(ctx context.Context, r *http.Request) (any, error) {
	var body ReloadRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if err := s.weir.ReloadNow(ctx, peer(ctx), body); err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	out := Reloaded{Services: len(view.Config.Services), Applied: view.Reached()}
	for _, sv := range view.Config.Services {
		out.Backends += len(sv.Backends)
	}
	return out, nil
}

func (s *Server) apply(ctx context.Context, r *http.Request) (any, error) {
	var body applyRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	var within time.Duration
	if body.Confirm != nil { // "" is a mistake: somebody meant a time
		var err error
		within, err = time.ParseDuration(*body.Confirm)
		if err != nil || within < keep.MinWithin || within > keep.MaxWithin {
			return nil, badRequest("confirm %s is not allowed; want a time from 1s to 24h, such as 60s or 5m", quote(*body.Confirm))
		}
	}
	warnings, err := s.weir.Apply(ctx, peer(ctx), ApplyRequest{body.ReloadRequest, within, body.File})
	if err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	out := Applied{Outcome: view.Last, Applied: view.Reached(), Waiting: view.Waiting}
	out.Warnings = append(slices.Clip(out.Warnings), warnings...)
	return out, nil
}

func (s *Server) confirm(ctx context.Context, r *http.Request) (any, error) {
	if err := read(r, &struct{}{}); err != nil {
		return nil, err
	}
	c, err := s.weir.Confirm(ctx, peer(ctx))
	if err != nil {
		return nil, err
	}
	return Confirmed{c.File, c.At}, nil
}

// saying is an operator's word as a request says it.
type saying struct {
	change func(state.Word) state.Word
	words  string // for the journal
}

// words reads the body of each word's request.
var words = map[string]func(r *http.Request, now time.Time) (saying, error){
	"drain":   drain,
	"weight":  weight,
	"enable":  admin(state.None, "enable"),
	"disable": admin(state.Disable, "disable"),
}

func drain(r *http.Request, now time.Time) (saying, error) {
	var body drainRequest
	if err := read(r, &body); err != nil {
		return saying{}, err
	}
	var until time.Time
	text := "drain"
	if body.Deadline != "" {
		d, err := time.ParseDuration(body.Deadline)
		if err != nil || d <= 0 || d > maxDeadline {
			return saying{}, badRequest("deadline %s is not allowed; want a time such as 90s, 10m or 1h30m, up to 8760h", quote(body.Deadline))
		}
		until, text = now.Add(d), "drain within "+d.String()
	}
	return saying{func(w state.Word) state.Word {
		w.Admin, w.Deadline = state.Drain, until
		return w
	}, text}, nil
}

// admin returns the reader of a word without a body.
func admin(a state.Admin, text string) func(*http.Request, time.Time) (saying, error) {
	return func(r *http.Request, _ time.Time) (saying, error) {
		if err := read(r, &struct{}{}); err != nil {
			return saying{}, err
		}
		return saying{func(w state.Word) state.Word {
			w.Admin, w.Deadline = a, time.Time{}
			return w
		}, text}, nil
	}
}

func weight(r *http.Request, _ time.Time) (saying, error) {
	var said struct {
		Weight json.RawMessage `json:"weight"`
	}
	if err := read(r, &said); err != nil {
		return saying{}, err
	}
	var n *int
	err := json.Unmarshal(said.Weight, &n)
	if err != nil || n != nil && (*n < 0 || *n > model.MaxWeight) {
		return saying{}, badRequest("weight is not right; want {\"weight\": 0 to %d}, or null for that of the file", model.MaxWeight)
	}
	text := "weight as in the file"
	if n != nil {
		text = fmt.Sprintf("weight %d", *n)
	}
	return saying{func(w state.Word) state.Word {
		w.Weight = n
		return w
	}, text}, nil
}

// say has weir take an operator's word, and answers with what came of it.
func (s *Server) say(ctx context.Context, r *http.Request, parse func(*http.Request, time.Time) (saying, error)) (any, error) {
	said, err := parse(r, time.Now())
	if err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	m, bad := findBackend(view.Config, r.PathValue("service"), r.PathValue("backend"))
	if bad != nil {
		return nil, bad
	}
	if err := s.weir.Say(ctx, peer(ctx), m, said.change, said.words); err != nil {
		return nil, err
	}
	if view, err = s.weir.View(ctx); err != nil {
		return nil, err
	}
	return describe(view, m)
}

// describe returns what view knows of a backend.
func describe(view engine.View, m engine.Member) (any, error) {
	out := Backend{Service: m.Service, Backend: m.Backend, Applied: view.Applied}
	s := view.Config.Service(m.Service)
	if s == nil {
		return nil, engine.ErrNoBackend // a reload in between
	}
	i := slices.IndexFunc(s.Backends, func(b model.Backend) bool { return b.ID() == m.Backend })
	if states := view.Backends[m.Service]; i >= 0 && i < len(states) {
		out.State, out.Reason, out.Since, out.Weight = states[i].State, states[i].Reason, states[i].Since, s.Backends[i].Weight
		if w := view.Words[m].Weight; w != nil {
			out.Weight = *w
		}
	}
	return out, nil
}

// events streams what happened, a line each, and what happens from now on if so asked.
// Once it has begun to answer it returns nil.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "since", "follow")
	if err != nil {
		return err
	}
	var since uint64
	if text, ok := q["since"]; ok {
		if since, err = strconv.ParseUint(text, 10, 64); err != nil {
			return badRequest("since: %s is not the number of an event", quote(text))
		}
	}
	follow := false
	if text, ok := q["follow"]; ok {
		if follow, err = strconv.ParseBool(text); err != nil {
			return badRequest("follow: %s is not allowed; allowed: 0, 1", quote(text))
		}
	}
	if follow {
		select {
		case s.followers <- struct{}{}:
			defer func() { <-s.followers }()
		default:
			return &Error{Code: http.StatusServiceUnavailable, Message: fmt.Sprintf("%d others follow the events already", maxFollow)}
		}
	}
	s.stream(w, r, since, follow)
	return nil
}

func (s *Server) stream(w http.ResponseWriter, r *http.Request, since uint64, follow bool) {
	out := http.NewResponseController(w)
	// The server's time to read a request also bounds how long it waits for the next
	// one; without this it would take the follower for gone.
	_ = out.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		_ = out.SetWriteDeadline(time.Now().Add(s.timeouts.write))
		list, more := s.weir.Since(since)
		for _, e := range list {
			if enc.Encode(e) != nil {
				return
			}
			since = e.Seq
		}
		if out.Flush() != nil || !follow {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-more:
		}
	}
}
