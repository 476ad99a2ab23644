package model

// DefaultBindingsFile is the file of the log of bindings where the configuration names none.
const DefaultBindingsFile = "/var/log/weir/bindings.jsonl"

// BindingsTo is where the log of bindings goes.
type BindingsTo uint8

// The places.
const (
	BindingsFile     BindingsTo = iota // Bindings.File
	BindingsSyslog                     // the machine's syslog
	BindingsJournald                   // systemd's journal
)

var bindingsNames = [...]string{"file", "syslog", "journald"}

// String returns the word of the configuration file, "file" where it names a file.
func (t BindingsTo) String() string { return bindingsNames[t] }

// Bindings says where it is written which client had which address and ports of a pool.
type Bindings struct {
	To   BindingsTo
	File string // an absolute path; "" unless To is BindingsFile
}

// DefaultBindings returns what holds where the configuration says nothing.
func DefaultBindings() Bindings { return Bindings{To: BindingsFile, File: DefaultBindingsFile} }
