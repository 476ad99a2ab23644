package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/flow"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

func (e *env) explainCmd() *cobra.Command {
	var from, to string
	var o explainOptions
	c := &cobra.Command{
		Use:   "explain --from ADDRESS:PORT --to ADDRESS:PORT[/PROTOCOL]",
		Short: "Follow a packet through the rules and say where it goes, and why",
		Example: `  weir explain --from 203.0.113.9:40000 --to 198.51.100.10:80/tcp
  weir explain --live --from "[2001:db8::9]:40000" --to "[2001:db8::10]:53/udp"`,
		RunE: func(c *cobra.Command, _ []string) error {
			if from == "" || to == "" {
				return usageError{errors.New("explain needs --from ADDRESS:PORT and --to ADDRESS:PORT/PROTOCOL")}
			}
			t, err := flow.ParseTuple(from, to)
			if err != nil {
				return usageError{err}
			}
			return e.explain(c.Context(), t, o)
		},
	}
	e.stateFlag(c)
	c.Flags().StringVar(&from, "from", "", "the client's `ADDRESS:PORT`")
	c.Flags().StringVar(&to, "to", "", "where it wants to: `ADDRESS:PORT/PROTOCOL`")
	c.Flags().BoolVar(&o.live, "live", false, "look at the kernel too: known connections, sticky clients, own addresses, devices")
	c.Flags().BoolVar(&o.local, "local", false, "the packet is sent by this box itself")
	c.Flags().BoolVar(&o.box, "box", false, "the destination is an address of this box")
	c.Flags().StringVar(&o.in, "in", "", "the `DEVICE` by which the packet comes in")
	c.Flags().StringVar(&o.out, "out", "", "the `DEVICE` by which it leaves")
	c.Flags().StringVar(&o.payload, "payload", "", "the `BYTES` behind the transport header, for rules of steering: text, or 0x and hexadecimal digits")
	return c
}

// explainOptions are the flags of `weir explain` beside the addresses.
type explainOptions struct {
	live, local, box bool
	in, out          string
	payload          string
}

// explainReport is the JSON of `weir explain`.
type explainReport struct {
	plan.Explanation
	// Running says that the weights are those that the running weir gives, by its checks
	// and by what operators said; else they are the file's.
	Running bool `json:"running"`
	// Live says that the kernel was looked at; Drift, that what it holds differs from the
	// file (then the steps are those of the file).
	Live  bool `json:"live"`
	Drift bool `json:"drift"`
	// Steering is what rules say of a packet of a steered service, while a weir runs.
	Steering *engine.Steered `json:"steering,omitempty"`
}

func (e *env) explain(ctx context.Context, t flow.Tuple, o explainOptions) error {
	defer e.progress("following the packet")()
	rep, err := e.follow(ctx, t, o)
	if err != nil {
		return err
	}
	return e.print(rep, func() error { return e.printExplain(rep) })
}

// follow returns what becomes of a packet.
func (e *env) follow(ctx context.Context, t flow.Tuple, o explainOptions) (rep explainReport, err error) {
	payload, err := payloadBytes(o.payload)
	if err != nil {
		return rep, err
	}
	cfg, err := config.Load(e.config)
	if err != nil {
		return rep, err
	}
	packet := ruleset.Packet{Src: t.Src, Dst: t.Dst, Proto: model.Proto(t.Proto), Local: o.local, In: o.in, Out: o.out}
	rep = explainReport{Live: o.live}
	cfg, rep.Running = e.effective(ctx, cfg)
	if o.box {
		packet.ToLocal = func(a netip.Addr) bool { return a == t.Dst.Addr() }
	}
	var env ruleset.Env
	compiled := e.readLists(ctx, cfg).Compiled()
	p := plan.Build(cfg, nil).WithBlocks(plan.NewBlocks(compiled, nil))
	if o.live {
		k, err := openKernel(false)
		if err != nil {
			return rep, err
		}
		defer k.close()
		k.Blocked = compiled
		live, delta, err := k.Preview(ctx, cfg)
		if err != nil {
			return rep, needsRights(err)
		}
		p, rep.Drift = live, !delta.Empty()
		if env.Dynamic, err = remembered(ctx, k.conn, p); err != nil {
			return rep, err
		}
		if err := lookAround(ctx, &packet); err != nil {
			return rep, needsRights(err)
		}
	}
	env.Queued = engine.Steer(p, payload, func(s engine.Steered) { rep.Steering = &s })
	rep.Explanation = p.Explain(packet, env)
	return rep, nil
}

// payloadBytes reads text, or hexadecimal digits behind 0x.
func payloadBytes(s string) ([]byte, error) {
	digits, isHex := strings.CutPrefix(s, "0x")
	if !isHex {
		return []byte(s), nil
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return nil, usageError{fmt.Errorf("--payload: %q are no hexadecimal digits, two for each byte: %w", digits, err)}
	}
	return b, nil
}

// remembered reads the clients of sticky services, and who is full.
func remembered(ctx context.Context, k *nft.Conn, p *plan.Plan) (func(set, key string) (string, bool), error) {
	type at struct{ set, key string }
	held := map[at]string{}
	for _, s := range p.Remembering() {
		err := k.Elements(ctx, engine.Tables[0], s, func(e nft.Elem) bool {
			held[at{s.Name, e.Key}] = e.Data
			return true
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return func(set, key string) (string, bool) {
		data, ok := held[at{set, key}]
		return data, ok
	}, nil
}

// lookAround fills in what the kernel knows: the packet's connection, and which addresses
// are the box's own.
func lookAround(ctx context.Context, packet *ruleset.Packet) error {
	c, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	filter := conntrack.Filter{Match: func(f *conntrack.Flow) bool {
		return f.Proto == packet.Proto && f.Orig.Src == packet.Src && f.Orig.Dst == packet.Dst
	}}
	err = c.Dump(ctx, filter, func(f conntrack.Flow) bool {
		packet.ConnMark = f.Mark
		packet.Conn = &ruleset.Conn{OrigSrc: f.Orig.Src, OrigDst: f.Orig.Dst, ReplySrc: f.Reply.Src, ReplyDst: f.Reply.Dst}
		return false
	})
	if err != nil {
		return err
	}
	own := ownAddrs()
	if packet.ToLocal == nil {
		packet.ToLocal = func(a netip.Addr) bool { return own[a] }
	}
	if packet.In == "" && !packet.Local {
		packet.In = deviceTo(packet.Src.Addr())
	}
	if packet.Out == "" {
		packet.Out = deviceTo(packet.Dst.Addr())
	}
	return nil
}

func (e *env) printExplain(rep explainReport) error {
	for _, s := range rep.Steps {
		mark := " "
		if s.Matched {
			mark = "*"
		}
		fmt.Fprintf(e.stdout, "%s %-11s %-26s %s\n", mark, s.Hook, s.Chain, s.Words)
		if s.Rule != "" {
			fmt.Fprintf(e.stdout, "  %-11s %-26s   %s\n", "", "", s.Rule)
		}
		if s.Detail != "" {
			fmt.Fprintf(e.stdout, "  %-11s %-26s   %s\n", "", "", s.Detail)
		}
	}
	if rep.Drift {
		fmt.Fprintln(e.stdout, "note: the kernel holds other rules than the file says (weir plan shows the difference)")
	}
	fmt.Fprintln(e.stdout, conclusion(rep.Explanation))
	return nil
}

// addressOf returns the address of ADDRESS:PORT.
func addressOf(text string) string {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return text
	}
	return ap.Addr().String()
}

// conclusion says in one sentence what becomes of the packet.
func conclusion(x plan.Explanation) string {
	packet := fmt.Sprintf("%s from %s to %s", x.Protocol, x.From, x.To)
	by := ""
	if x.Access != nil {
		by = x.Access.By
	}
	switch {
	case x.Blocked:
		return fmt.Sprintf("=> %s: a blocklist stops it (%s); weir why %s says which", packet, x.Verdict, addressOf(x.From))
	case x.Access != nil && x.Access.Verdict != string(ruleset.AcceptPacket):
		return fmt.Sprintf("=> %s: dropped (%s)", packet, by)
	case x.Forward == model.ForwardLocal.String() && x.Verdict == string(ruleset.Accepted):
		return fmt.Sprintf("=> %s: %s gets it, a program on this box", packet, x.Service)
	case x.Service == "" && x.Pool != "" && x.Verdict != string(ruleset.Accepted):
		return fmt.Sprintf("=> %s: dropped: pool %s has no source left for it", packet, x.Pool)
	case x.Service == "" && x.Pool != "":
		return fmt.Sprintf("=> %s: leaves with a source of pool %s: %s", packet, x.Pool, sourceWords(x))
	case x.Service == "" && by != "":
		return fmt.Sprintf("=> %s: let through (%s); no service listens there", packet, by)
	case x.Service == "":
		return fmt.Sprintf("=> %s: no service listens there; weir leaves the packet alone", packet)
	case x.Verdict == string(ruleset.Dropped):
		return fmt.Sprintf("=> %s: %s drops it", packet, x.Service)
	case x.Verdict != string(ruleset.Accepted):
		return fmt.Sprintf("=> %s: %s refuses it (%s)", packet, x.Service, x.Verdict)
	}
	if x.Forward == model.ForwardDirect.String() {
		if x.Backend == "" {
			return fmt.Sprintf("=> %s: %s listens there, but the packet does not come in by one of its devices; weir leaves it alone", packet, x.Service)
		}
		return fmt.Sprintf("=> %s: %s sends it to %s as it is, which answers %s itself", packet, x.Service, x.Backend, x.Source)
	}
	source := "which sees " + sourceWords(x) + " as its client"
	if x.Backend == "" {
		s := fmt.Sprintf("=> %s: %s gives it to the next in turn, one of:", packet, x.Service)
		for _, c := range x.Candidates {
			s += fmt.Sprintf("\n     %s (%.0f%%)", c.Address, 100*c.Share)
		}
		return s + "\n   " + source
	}
	why := ""
	if x.Established {
		why = ", as the rest of its connection"
	}
	return fmt.Sprintf("=> %s: %s gives it to %s%s, %s", packet, x.Service, x.Backend, why, source)
}

// sourceWords says what the far side sees.
func sourceWords(x plan.Explanation) string {
	words := x.Source
	switch {
	case len(x.Sources) > 8:
		words = fmt.Sprintf("the next in turn of %s and %d more", strings.Join(x.Sources[:8], ", "), len(x.Sources)-8)
	case len(x.Sources) > 0:
		words = "the next in turn of " + strings.Join(x.Sources, ", ")
	case x.Source == "masquerade":
		words = "this box"
	}
	if x.SourcePorts != "" {
		words += " (port " + x.SourcePorts + ")"
	}
	return words
}
