// Command weir balances, gates and filters traffic with the kernel's own means: it reads
// one file, makes the kernel do what it says, and stays out of the packets' way.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"weir/internal/config"
)

// Exit codes.
const (
	exitOK     = 0 // done
	exitFailed = 1 // the kernel, or something else that weir needs, said no
	exitUsage  = 2 // the configuration or the command line is wrong; nothing was changed
)

// env is what a command may use of the world outside.
type env struct {
	args           []string
	stdout, stderr io.Writer
	config         string // path of the configuration
	output         string // "text" or "json"
	state          string // path of the file that keeps what operators say
}

// defaultConfig is the configuration when none is named.
const defaultConfig = "/etc/weir/weir.yaml"

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	e := &env{args: os.Args[1:], stdout: os.Stdout, stderr: os.Stderr}
	code := e.run(ctx)
	stop()
	os.Exit(code)
}

// run does the command that args name, and returns the exit code.
func (e *env) run(ctx context.Context) int {
	root := e.root()
	root.SetArgs(e.args)
	err := root.ExecuteContext(ctx)
	var bad config.Errors
	var usage usageError
	var code exitCode
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &bad):
		fmt.Fprintln(e.stderr, err)
		return exitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(e.stderr, "weir: %v\n", err)
		return exitUsage
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintf(e.stderr, "weir: %v\n", err)
	return exitFailed
}

// exitCode ends a command when all is said already.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "weir",
		Short: "Load balancer, egress gateway and edge filter out of one file and the kernel",
		Long: `weir reads one YAML file and makes the kernel do what it says, with nftables. The
kernel forwards the packets, also when weir is stopped, upgraded or killed.

Exit codes: 0 done; 1 the kernel or something else weir needs said no (doctor: there is
something wrong); 2 the configuration or the command line is wrong, and nothing was
changed.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if e.output != "text" && e.output != "json" {
				return usageError{fmt.Errorf("--output %q is not allowed; allowed: text, json", e.output)}
			}
			return nil
		},
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&e.config, "config", defaultConfig, "configuration `FILE`")
	flags.StringVarP(&e.output, "output", "o", "text", "form of reports: text or json")
	root.AddCommand(e.checkCmd(), e.planCmd(), e.applyCmd(), e.confirmCmd(), e.runCmd(), e.clearCmd(),
		e.statusCmd(), e.offendersCmd(), e.eventsCmd(), e.explainCmd(), e.demoCmd(), e.schemaCmd(), e.versionCmd(),
		e.doctorCmd(), e.reloadCmd(), e.drainCmd(), e.disableCmd(), e.enableCmd(), e.weightCmd(), e.guardCmd(),
		e.egressCmd(), e.blocksCmd(), e.blockCmd(), e.unblockCmd(), e.whyCmd(), e.mirrorsCmd(), e.mirrorCmd(), e.tapCmd(), e.backendSetupCmd())
	for _, c := range root.Commands() {
		if c.Args == nil {
			c.Args = noArgs
		}
	}
	// Without a command of its own the root would take any word for an argument.
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("there is no command %q; weir --help lists them", args[0])}
		}
		return nil
	}
	root.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return root
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no argument, found %q", c.CommandPath(), args[0])}
	}
	return nil
}
