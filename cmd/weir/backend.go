package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/internal/model"
)

func (e *env) backendSetupCmd() *cobra.Command {
	var undo bool
	c := &cobra.Command{
		Use:   "backend-setup SERVICE [BACKEND]",
		Short: "Print what a backend of a service with forward: direct needs, to paste or run there",
		Long: `Print the commands that make a Linux machine a backend of a service with forward:
direct: it holds the service's listen addresses, and lets nobody on its segment know. They
are for sh, as root; running them again does no harm. weir itself changes nothing. With a
BACKEND, they are for the listen addresses of its IP version alone.`,
		Example: `  weir backend-setup web
  weir backend-setup web 10.1.1.1 | ssh root@10.1.1.1 sh`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usageError{fmt.Errorf("backend-setup takes a service and, if you like, a backend, found %d arguments", len(args))}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return e.backendSetup(args, undo) },
	}
	c.Flags().BoolVar(&undo, "undo", false, "print the commands that take it back")
	return c
}

// setupReport is the JSON of `weir backend-setup`.
type setupReport struct {
	Service  string   `json:"service"`
	Backend  string   `json:"backend,omitempty"`
	Commands []string `json:"commands"` // for sh, in this order
	Undo     []string `json:"undo"`     // the same, to take it back
}

func (e *env) backendSetup(args []string, undo bool) error {
	cfg, err := config.Load(e.config)
	if err != nil {
		return err
	}
	s := cfg.Service(args[0])
	switch {
	case s == nil:
		return usageError{fmt.Errorf("there is no service %q in %s", args[0], e.config)}
	case !s.Direct():
		return usageError{fmt.Errorf("service %s has forward: %s; only backends of services with forward: direct need to be set up", s.Name, s.Forward)}
	}
	rep := setupReport{Service: s.Name}
	families := s.Families()
	if len(args) == 2 {
		i := slices.IndexFunc(s.Backends, func(b model.Backend) bool { return b.ID() == args[1] })
		if i < 0 {
			return usageError{fmt.Errorf("service %s has no backend %q", s.Name, args[1])}
		}
		rep.Backend, families = args[1], []model.Family{s.Backends[i].Family()}
	}
	rep.Commands, rep.Undo = backendCommands(s, families)
	return e.print(rep, func() error { return rep.print(e.stdout, undo) })
}

// backendCommands returns what makes a machine a backend of s in those families, and what
// takes it back.
//
// IPv4: Linux answers ARP for all addresses of the machine, whatever device bears them, and
// asks in the name of the address that a packet is from. arp_ignore=1 answers for addresses of
// the device alone, arp_announce=2 asks in the name of one of those
// (Documentation/networking/ip-sysctl.rst). IPv6: neighbour solicitations are answered for
// addresses of the device alone (ndisc_recv_ns in net/ipv6/ndisc.c), so lo is enough; an
// address without preferred lifetime is not chosen for the machine's own connections.
func backendCommands(s *model.Service, families []model.Family) (do, undo []string) {
	if slices.Contains(families, model.IPv4) {
		do = append(do, "sysctl -w net.ipv4.conf.all.arp_ignore=1", "sysctl -w net.ipv4.conf.all.arp_announce=2")
	}
	var seen []netip.Addr
	for _, l := range s.Listen {
		if !slices.Contains(families, l.Family()) || slices.Contains(seen, l.Addr) {
			continue
		}
		seen = append(seen, l.Addr)
		address := netip.PrefixFrom(l.Addr, l.Addr.BitLen()).String()
		more := ""
		if l.Addr.Is6() {
			more = " nodad preferred_lft 0"
		}
		do = append(do, "ip address replace "+address+" dev lo"+more)
		undo = append(undo, "ip address del "+address+" dev lo")
	}
	if slices.Contains(families, model.IPv4) {
		undo = append(undo, "sysctl -w net.ipv4.conf.all.arp_ignore=0", "sysctl -w net.ipv4.conf.all.arp_announce=0")
	}
	return do, undo
}

func (r setupReport) print(w io.Writer, undo bool) error {
	who := "a backend"
	if r.Backend != "" {
		who = r.Backend
	}
	var b strings.Builder
	if undo {
		fmt.Fprintf(&b, "# No longer %s of service %s. Sysctls go back to Linux's defaults: leave them if other\n# services need them.\nset -e\n%s\n", who, r.Service, strings.Join(r.Undo, "\n"))
	} else {
		fmt.Fprintf(&b, `# For %s of service %s: it holds the service's addresses, and no neighbour hears of them.
# As root, in sh. It lasts until the machine is started again.
set -e
%s
# Its programs listen on these addresses, on the ports of the service, and on the machine's
# own address too where weir's checks ask. To take it back:
#   %s
`, who, r.Service, strings.Join(r.Commands, "\n"), strings.Join(r.Undo, "\n#   "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
