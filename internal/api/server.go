package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"weir/internal/config"
	"weir/internal/engine"
)

// timeouts of the server. A follower has none but for each single write.
type timeouts struct {
	header  time.Duration // to send the head of a request
	request time.Duration // to send the whole of it, and to answer it
	write   time.Duration // of an event, by who follows them
	stop    time.Duration // that requests get to end when the server does
}

var usual = timeouts{header: 5 * time.Second, request: time.Minute, write: 30 * time.Second, stop: time.Second}

// Server answers requests for a Controller.
type Server struct {
	weir      Controller
	version   string
	log       *slog.Logger
	routes    *http.ServeMux
	timeouts  timeouts
	followers chan struct{} // one for each
}

// New returns a server for weir, which is of that version.
func New(weir Controller, version string, log *slog.Logger) *Server {
	s := &Server{weir: weir, version: version, log: log, routes: http.NewServeMux(), timeouts: usual,
		followers: make(chan struct{}, maxFollow)}
	s.route("GET", "/v1/version", func(context.Context, *http.Request) (any, error) {
		return Version{s.version, apiVersion}, nil
	})
	s.route("GET", "/v1/status", s.status)
	s.route("GET", "/v1/backends", s.backends)
	s.route("GET", "/v1/offenders", s.offenders)
	s.route("POST", "/v1/reload", s.reload)
	s.route("POST", "/v1/apply", s.apply)
	s.route("POST", "/v1/confirm", s.confirm)
	s.route("GET", "/v1/blocks", s.blocks)
	s.route("POST", "/v1/blocks/add", s.block)
	s.route("POST", "/v1/blocks/remove", s.unblock)
	s.route("POST", "/v1/blocks/accept", s.accept)
	s.route("GET", "/v1/blocks/top", s.top)
	s.route("GET", "/v1/why", s.why)
	s.egressRoutes()
	s.route("GET", "/v1/mirrors", s.mirrors)
	s.route("POST", "/v1/mirrors/start", s.startMirror)
	s.route("POST", "/v1/mirrors/stop", s.stopMirror)
	for word, say := range words {
		s.route("POST", "/v1/backends/{service}/{backend}/"+word, func(ctx context.Context, r *http.Request) (any, error) {
			return s.say(ctx, r, say)
		})
	}
	s.routes.HandleFunc("/v1/events", func(w http.ResponseWriter, r *http.Request) {
		if !allowed(w, r, "GET") {
			return
		}
		if err := s.events(w, r); err != nil {
			s.refuse(w, err)
		}
	})
	return s
}

// Metrics has h answer GET /metrics.
func (s *Server) Metrics(h http.Handler) {
	s.routes.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
		if allowed(w, r, "GET") {
			h.ServeHTTP(w, r)
		}
	})
}

// Serve answers requests until ctx ends, and closes l. It returns nil, unless l failed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{Handler: s, ReadHeaderTimeout: s.timeouts.header, ReadTimeout: s.timeouts.request,
		WriteTimeout: s.timeouts.request, IdleTimeout: s.timeouts.request, MaxHeaderBytes: 16 << 10,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return ctx }, // followers hear of the end
		ConnContext: withPeer}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), s.timeouts.stop)
		defer done()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(l)
	cancel()
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	// ServeMux would send a path that is not in its plain form elsewhere.
	if _, known := s.routes.Handler(r); known == "" || path.Clean(r.URL.Path) != r.URL.Path {
		s.refuse(w, &Error{Code: http.StatusNotFound, Message: "there is no path " + quote(r.URL.Path)})
		return
	}
	s.routes.ServeHTTP(w, r)
}

// route has fn answer a path with a body, or an error.
func (s *Server) route(method, pattern string, fn func(context.Context, *http.Request) (any, error)) {
	s.routes.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if !allowed(w, r, method) {
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), s.timeouts.request)
		defer cancel()
		body, err := fn(ctx, r)
		if err != nil {
			s.refuse(w, err)
			return
		}
		reply(w, http.StatusOK, body)
	})
}

func allowed(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	reply(w, http.StatusMethodNotAllowed, &Error{Message: fmt.Sprintf("%s wants %s, not %s", r.URL.Path, method, quote(r.Method))})
	return false
}

// refuse answers with an error.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	var e *Error
	var file config.Errors
	switch {
	case errors.As(err, &e):
	case errors.As(err, &file):
		e = &Error{Code: http.StatusBadRequest, Errors: file,
			Message: "the configuration is not taken, the last good one stays: " + err.Error()}
	case errors.Is(err, engine.ErrNoBackend):
		e = &Error{Code: http.StatusNotFound, Message: err.Error()}
	case errors.Is(err, engine.ErrNothing), errors.Is(err, engine.ErrWaiting):
		e = &Error{Code: http.StatusConflict, Message: err.Error()}
	case errors.Is(err, context.Canceled):
		e = &Error{Code: http.StatusServiceUnavailable, Message: "weir is stopping"}
	default:
		s.log.Warn("a request failed", "error", err)
		e = &Error{Code: http.StatusInternalServerError, Message: err.Error()}
	}
	reply(w, e.Code, e)
}

// reply writes a body. An error of it is the client's: it has gone.
func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body)
}

func badRequest(format string, args ...any) *Error {
	return &Error{Code: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

// read reads a body into v. No body is an empty one.
func read(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); err == nil {
			err = errors.New("something follows the object")
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &Error{Code: http.StatusRequestEntityTooLarge,
			Message: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	}
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		if wrong.Field == "" {
			return badRequest("the body is wrong: it is %s, want an object", wrong.Value)
		}
		return badRequest("the body is wrong: %s is %s, want %s", wrong.Field, wrong.Value, wrong.Type)
	}
	return badRequest("the body is wrong: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// query returns the values of a query that may have those keys, each once.
func query(r *http.Request, keys ...string) (map[string]string, error) {
	out := map[string]string{}
	for k, v := range r.URL.Query() {
		if !slices.Contains(keys, k) || len(v) != 1 {
			return nil, badRequest("query: %s is not allowed; allowed, each once: %s", quote(k), enumerate(keys))
		}
		out[k] = v[0]
	}
	return out, nil
}
