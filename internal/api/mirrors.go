package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/model"
)

// Mirrors is the answer of /v1/mirrors.
type Mirrors struct {
	Mirrors []engine.MirrorStatus `json:"mirrors"` // those of the file first
}

// MirrorSaid is the answer to what an operator said of a mirror.
type MirrorSaid struct {
	Name    string `json:"name"`
	Applied bool   `json:"applied"` // as in Backend
}

// mirrorRequest is a body.
type mirrorRequest struct {
	Name   string          `json:"name"`
	Mirror json.RawMessage `json:"mirror,omitempty"` // the keys of an entry of mirrors but for name
}

func (s *Server) mirrors(ctx context.Context, r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	list, err := s.weir.Mirrors(ctx)
	return Mirrors{list}, err
}

func (s *Server) startMirror(ctx context.Context, r *http.Request) (any, error) {
	var body mirrorRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	var m *model.Mirror
	if len(body.Mirror) > 0 {
		view, err := s.weir.View(ctx)
		if err != nil {
			return nil, err
		}
		if m, err = parseMirror(view.Config, body); err != nil {
			return nil, err
		}
	}
	return s.saidOfMirror(ctx, body.Name, s.weir.StartMirror(ctx, peer(ctx), body.Name, m))
}

// parseMirror reads a mirror as the file has it: JSON is YAML.
func parseMirror(cfg *model.Config, body mirrorRequest) (*model.Mirror, error) {
	keys := map[string]any{}
	if err := json.Unmarshal(body.Mirror, &keys); err != nil {
		return nil, badRequest("mirror: want the keys of a mirror, such as {\"to\": \"10.9.9.9\"}")
	}
	keys["name"] = body.Name
	text, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	m, err := config.ParseMirror(cfg, string(text))
	var all config.Errors
	if errors.As(err, &all) {
		for _, e := range all { // there is no file whose line it could be
			e.File, e.Line, e.Column = "", 0, 0
		}
		return nil, &Error{Code: http.StatusBadRequest, Message: "the mirror is not right: " + all[0].Msg}
	}
	return m, err
}

func (s *Server) stopMirror(ctx context.Context, r *http.Request) (any, error) {
	var body mirrorRequest
	if err := read(r, &body); err != nil {
		return nil, err
	}
	return s.saidOfMirror(ctx, body.Name, s.weir.StopMirror(ctx, peer(ctx), body.Name))
}

func (s *Server) saidOfMirror(ctx context.Context, name string, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	view, err := s.weir.View(ctx)
	if err != nil {
		return nil, err
	}
	return MirrorSaid{name, view.Applied}, nil
}

// Mirrors asks for all mirrors.
func (c *Client) Mirrors(ctx context.Context) (Mirrors, error) {
	return ask[Mirrors](ctx, c, "GET", "/v1/mirrors", nil)
}

// StartMirror starts a mirror that was stopped or, with keys, one that is in no file.
func (c *Client) StartMirror(ctx context.Context, name string, keys map[string]any) (MirrorSaid, error) {
	body := mirrorRequest{Name: name}
	if len(keys) > 0 {
		text, err := json.Marshal(keys)
		if err != nil {
			return MirrorSaid{}, err
		}
		body.Mirror = text
	}
	return ask[MirrorSaid](ctx, c, "POST", "/v1/mirrors/start", body)
}

// StopMirror stops a mirror.
func (c *Client) StopMirror(ctx context.Context, name string) (MirrorSaid, error) {
	return ask[MirrorSaid](ctx, c, "POST", "/v1/mirrors/stop", mirrorRequest{Name: name})
}
