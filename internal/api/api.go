// Package api is how everybody else speaks to a running weir: HTTP with JSON bodies over
// a unix socket, and nothing that commands could do and other programs could not.
//
// Who may connect to the socket may do all that weir can; the file's mode is the only
// guard, and it is right from the moment at which the file can be seen. What comes over
// it is still not trusted: bodies, waits and the number of followers are bounded, and
// what is wrong is answered with a status of 400 and up and an Error.
//
//	GET  /v1/version
//	GET  /v1/status[?service=NAME]
//	GET  /v1/offenders[?service=NAME]                  sources that were over a limit
//	GET  /v1/events[?since=N][&follow=1]               one engine.Event a line
//	POST /v1/reload                                    {"ssh_connection": "…"}, or nothing
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
	"time"

	"weir/internal/config"
	"weir/internal/engine"
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
	Say(ctx context.Context, m engine.Member, change func(state.Word) state.Word, words string) error
	// ReloadNow loads the configuration again. The error unwraps to config.Errors when
	// the file is wrong.
	ReloadNow(ctx context.Context, r ReloadRequest) error
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

// ReloadRequest is how a configuration is loaded again. Its JSON form is a body.
type ReloadRequest struct {
	// SSHConnection is SSH_CONNECTION of the session that asks: a configuration that would
	// cut it off is refused.
	SSHConnection string `json:"ssh_connection,omitempty"`
	// LockMeOut takes a configuration that would, or that leaves nobody a way in.
	LockMeOut bool `json:"lock_me_out,omitempty"`
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

// Limits of what is taken.
const (
	maxBody     = 64 << 10 // bytes
	maxDeadline = 365 * 24 * time.Hour
	maxFollow   = 64 // who follow the events at once
	maxNamed    = 20 // services or backends that a message names
)
