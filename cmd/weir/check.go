package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"weir/internal/config"
)

// checkReport is the JSON of `weir check`.
type checkReport struct {
	File     string        `json:"file"`
	Valid    bool          `json:"valid"`
	Services int           `json:"services"`
	Backends int           `json:"backends"`
	Errors   config.Errors `json:"errors"`
}

func (e *env) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and say all that is wrong with it",
		RunE: func(*cobra.Command, []string) error {
			rep := checkReport{File: e.config, Errors: config.Errors{}}
			cfg, err := config.Load(e.config)
			if err != nil {
				if e.output != "json" || !errors.As(err, &rep.Errors) {
					return err
				}
				return errors.Join(e.print(rep, nil), exitCode(exitUsage))
			}
			rep.Valid, rep.Services = true, len(cfg.Services)
			for _, s := range cfg.Services {
				rep.Backends += len(s.Backends)
			}
			return e.print(rep, func() error {
				_, err := fmt.Fprintf(e.stdout, "%s: %s, %s: good\n", e.config,
					plural(rep.Services, "service"), plural(rep.Backends, "backend"))
				return err
			})
		},
	}
}

func (e *env) schemaCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration, for editors",
		RunE: func(*cobra.Command, []string) error {
			_, err := e.stdout.Write(config.Schema())
			return err
		},
	}
}
