// Package api is how everybody else speaks to a running weir: HTTP with JSON bodies over
// a unix socket, and nothing that commands could do and other programs could not.
//
// Who may connect to the socket may do all that weir can; the file's mode is the only
// guard, and it is right from the moment at which the file can be seen. What comes over
// it is still not trusted: bodies, waits and the number of followers are bounded, and
// what is wrong is answered with a status of 400 and up and an Error.
//
//	GET  /metrics                                      for Prometheus: docs/METRICS.md
//	GET  /v1/version
//	GET  /v1/status[?service=NAME]
//	GET  /v1/offenders[?service=NAME]                  sources that were over a limit
//	GET  /v1/events[?since=N][&follow=1]               one engine.Event a line
//	GET  /v1/backends                                  what weights follow from, beyond the file
//	POST /v1/reload                                    {"ssh_connection": "…", "lock_me_out": true}, each may lack
//	POST /v1/apply                                     {"confirm": "60s", "file": "/etc/weir/weir.yaml"}, and as reload; each may lack
//	POST /v1/confirm
//	GET  /v1/blocks                                    all blocklists, and what operators blocked
//	POST /v1/blocks/add                                {"entry": "192.0.2.7", "for": "1h", "why": "scraper"}, the last two may lack
//	POST /v1/blocks/remove                             {"entry": "192.0.2.7"}
//	POST /v1/blocks/accept                             {"list": "crawlers"}: however much it changed
//	GET  /v1/blocks/top[?n=20][&list=NAME]             the entries that packets met most
//	GET  /v1/egress[?pool=NAME]                        what egress pools have in use
//	POST /v1/egress/drain                              {"address": "192.0.2.7", "deadline": "10m"}, the last may lack
//	POST /v1/egress/enable                             {"address": "192.0.2.7"}
//	GET  /v1/mirrors
//	POST /v1/mirrors/start                             {"name": "look", "mirror": {"to": "10.9.9.9", …}}; without mirror, one that was stopped
//	POST /v1/mirrors/stop                              {"name": "look"}
//	GET  /v1/why?address=192.0.2.7                     what lists and the rest say of an address
//	POST /v1/backends/SERVICE/BACKEND/drain            {"deadline": "10m"}, or nothing
//	POST /v1/backends/SERVICE/BACKEND/enable
//	POST /v1/backends/SERVICE/BACKEND/disable
//	POST /v1/backends/SERVICE/BACKEND/weight           {"weight": 5}, null: as in the file
//
// BACKEND is a backend's identity as status shows it, escaped as a path segment, or its
// address alone where the service has it once.
package api

import (
	"context"
	"net/netip"
	"time"

	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/state"
)

// Controller is the running weir. Its methods may be called from several goroutines.
type Controller interface {
	// View returns what is known, once what was said before has been tried to apply.
	View(ctx context.Context) (engine.View, error)
	// Status returns view's services, or the one of that name, with what was counted.
	Status(ctx context.Context, view engine.View, service string) (engine.Status, error)
	// Offenders returns who was over a limit of view's services, or of the one of that name.
	Offenders(ctx context.Context, view engine.View, service string) ([]engine.Offender, error)
	// Say takes an operator's word of a backend (engine.Loop.Say).
	Say(ctx context.Context, by *state.Operator, m engine.Member, change func(state.Word) state.Word, words string) error
	// ReloadNow loads the configuration again. The error unwraps to config.Errors when
	// the file is wrong.
	ReloadNow(ctx context.Context, by *state.Operator, r ReloadRequest) error
	// Apply is ReloadNow, or, with a time, takes the configuration until it is over
	// unless Confirm is said (engine.Loop.Apply). It returns warnings that are not of the
	// kernel's rules; an error if weir has another file than the one that is meant.
	Apply(ctx context.Context, by *state.Operator, r ApplyRequest) ([]string, error)
	// Confirm keeps what waits and returns it; else engine.ErrNothing.
	Confirm(ctx context.Context, by *state.Operator) (keep.Config, error)
	// Block blocks a prefix, Unblock takes that back, and Accept takes a blocklist however
	// much it changed. What they refuse is an *Error.
	Block(ctx context.Context, by *state.Operator, b lists.Block) error
	Unblock(ctx context.Context, by *state.Operator, p netip.Prefix) error
	Accept(ctx context.Context, by *state.Operator, list string) error
	// Top returns the n entries of blocklists that packets met most; list picks one, "" is
	// all.
	Top(ctx context.Context, n int, list string) (Top, error)
	// Why returns what lists say of an address, without what AddSource adds.
	Why(ctx context.Context, a netip.Addr) (Why, error)
	EgressController
	// Mirrors returns all mirrors. StartMirror starts one that was stopped, or with m one that
	// is in no file; StopMirror stops one. What they refuse is an *Error.
	Mirrors(ctx context.Context) ([]engine.MirrorStatus, error)
	StartMirror(ctx context.Context, by *state.Operator, name string, m *model.Mirror) error
	StopMirror(ctx context.Context, by *state.Operator, name string) error
	// Since returns the events after a number, and what is closed when there are more.
	Since(seq uint64) ([]engine.Event, <-chan struct{})
}

// Error is the body of an answer with a status of 400 and up.
type Error struct {
	Code    int           `json:"-"` // the HTTP status
	Message string        `json:"error"`
	Errors  config.Errors `json:"errors,omitempty"` // mistakes in the configuration
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Backend is what a backend is after an operator's word.
type Backend struct {
	Service string     `json:"service"`
	Backend string     `json:"backend"` // its identity
	State   state.Name `json:"state"`
	Reason  string     `json:"reason,omitempty"`
	Since   time.Time  `json:"since,omitzero"`
	Weight  int        `json:"weight"` // the operator's or the file's
	// Applied says that the kernel does so. If it is false, weir tries again, and the
	// events say what is in the way.
	Applied bool `json:"applied"`
}

// Backends is what weir knows of backends beyond the configuration, and what the weights
// follow from that it gives them.
type Backends struct {
	Backends []engine.Known `json:"backends"`
	// Pools is the same of egress pools: where their new connections go.
	Pools []engine.KnownPool `json:"pools,omitempty"`
}

// ReloadRequest is how a configuration is loaded again. Its JSON form is a body.
type ReloadRequest struct {
	// SSHConnection is SSH_CONNECTION of the session that asks: a configuration that would
	// cut it off is refused.
	SSHConnection string `json:"ssh_connection,omitempty"`
	// LockMeOut takes a configuration that would, or that leaves nobody a way in.
	LockMeOut bool `json:"lock_me_out,omitempty"`
}

// ApplyRequest is how a configuration is applied.
type ApplyRequest struct {
	ReloadRequest
	Confirm time.Duration // it goes back after that time unless Confirm is said; 0: it stays
	File    string        // the path of the configuration that is meant; "": weir's
}

// Offenders is the answer of /v1/offenders.
type Offenders struct {
	Offenders []engine.Offender `json:"offenders"` // the worst first
}

// Reloaded is what a reload brought.
type Reloaded struct {
	Services int  `json:"services"`
	Backends int  `json:"backends"`
	Applied  bool `json:"applied"` // as in Backend
}

// Applied is what an apply brought.
type Applied struct {
	engine.Outcome
	Applied bool            `json:"applied"`           // as in Backend
	Waiting *engine.Waiting `json:"waiting,omitempty"` // it goes back unless it is confirmed
}

// Confirmed is the answer of /v1/confirm.
type Confirmed struct {
	File string    `json:"file"` // that is kept
	At   time.Time `json:"at"`   // when it was taken
}

// Version is the answer of /v1/version.
type Version struct {
	Version string `json:"version"`
	API     int    `json:"api"` // counts up when something here changes its meaning
}

// apiVersion is Version.API.
const apiVersion = 1

// drainRequest is a body.
type drainRequest struct {
	Deadline string `json:"deadline"` // a Go duration; "": until the last connection ends
}

// applyRequest is a body.
type applyRequest struct {
	ReloadRequest
	Confirm *string `json:"confirm,omitempty"` // a Go duration; nil: it needs no confirmation
	File    string  `json:"file,omitempty"`    // the path of the configuration that is meant; "": weir's
}

// Limits of what is taken.
const (
	maxBody     = 64 << 10 // bytes
	maxDeadline = 365 * 24 * time.Hour
	maxFollow   = 64 // who follow the events at once
	maxNamed    = 20 // services or backends that a message names
	maxTop      = 10_000
	usualTop    = 20
)
