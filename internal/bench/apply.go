package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"weir/internal/lab"
)

// ApplyCell is what one contender takes for one number of services: medians of the
// rounds. Times are what passes on the clock and, for CPU, what the process spends on
// processors, which other work on the machine hardly changes.
type ApplyCell struct {
	Name     string  `json:"name"`
	Services int     `json:"services"`
	First    Times   `json:"first"`      // from nothing, the whole process
	Change   Times   `json:"change"`     // one backend gets another address
	Health   Times   `json:"health"`     // one backend is taken out, or put back; live only
	Memory   float64 `json:"memory_mib"` // the most of a round
	Rounds   int     `json:"rounds"`
	Problem  string  `json:"problem,omitempty"`
}

// Times are medians in milliseconds.
type Times struct {
	Clock float64 `json:"ms"`
	CPU   float64 `json:"cpu_ms"`
}

// files are the states A and B of some number of services, which differ in one backend,
// in everybody's words.
type files struct {
	weir, nft, chains, flat [2]string
	delta                   [2]string // for nft: from A to B, and back
}

// files writes the files of a number of services, once.
func (b *bench) files(services int) (*files, error) {
	if f := b.written[services]; f != nil {
		return f, nil
	}
	states := [2]texts{}
	first := newModel(services)
	second := replaced(first, services/2)
	states[0], states[1] = textsOf(first), textsOf(second)
	f := &files{}
	var err error
	write := func(kind string, i int, data []byte) (path string) {
		if err == nil {
			path, err = b.file(fmt.Sprintf("%d-%c.%s", services, 'a'+i, kind), data)
		}
		return path
	}
	for i, s := range states {
		f.weir[i] = write("yaml", i, s.weir)
		f.nft[i] = write("nft", i, s.nft)
		f.chains[i] = write("chains", i, s.chains)
		f.flat[i] = write("flat", i, s.flat)
	}
	f.delta[0] = write("delta", 0, deltaText(first, second))
	f.delta[1] = write("delta", 1, deltaText(second, first))
	b.written[services] = f
	return f, err
}

// contender is somebody who loads rules with a command.
type contender struct {
	name    string
	first   func(*files) []string
	change  func(f *files, to int) []string // to state 1, or back to 0
	clear   []string
	packets bool // its rules are worth a measurement of packets of their own
}

// weirApply is the name of the row that the others are compared with.
const weirApply = "weir apply"

// contenders returns those whose programs are here.
func (b *bench) contenders() []contender {
	all := []contender{
		{name: weirApply, packets: true,
			first: func(f *files) []string {
				return []string{b.weir, "apply", "--config", f.weir[0], "--state", f.weir[0] + ".state"}
			},
			change: func(f *files, to int) []string {
				return []string{b.weir, "apply", "--config", f.weir[to], "--state", f.weir[0] + ".state"}
			},
			clear: []string{b.weir, "clear"}},
		{name: "nft -f",
			first:  func(f *files) []string { return []string{"nft", "-f", f.nft[0]} },
			change: func(f *files, to int) []string { return []string{"nft", "-f", f.delta[1-to]} },
			clear:  []string{"nft", "flush", "ruleset"}},
	}
	for _, kind := range []string{"legacy", "nft"} {
		program := "iptables-" + kind + "-restore"
		restore := func(path string) []string { return []string{program, path} }
		clear := []string{"iptables-" + kind, "-t", "nat", "-F"}
		all = append(all,
			contender{name: "iptables-" + kind + ", chains", packets: true, clear: clear,
				first:  func(f *files) []string { return restore(f.chains[0]) },
				change: func(f *files, to int) []string { return restore(f.chains[to]) }},
			contender{name: "iptables-" + kind + ", one list", packets: true, clear: clear,
				first:  func(f *files) []string { return restore(f.flat[0]) },
				change: func(f *files, to int) []string { return restore(f.flat[to]) }})
	}
	var here []contender
	for _, c := range all {
		program := c.first(&files{})[0]
		if _, err := exec.LookPath(program); err == nil {
			here = append(here, c)
		} else if !b.told[program] {
			b.told[program] = true
			b.note("%s is not on this machine: left out", program)
		}
	}
	return here
}

// series collects the rounds of a cell.
type series struct {
	cell                  ApplyCell
	first, change, health taken
	memory                []float64
	most                  int64 // KiB, of the round
}

// taken are times of several runs, in milliseconds.
type taken struct{ clock, cpu []float64 }

func (t *taken) median() Times { return Times{median(t.clock), median(t.cpu)} }

func (s *series) finish() ApplyCell {
	c := s.cell
	c.First, c.Change, c.Health = s.first.median(), s.change.median(), s.health.median()
	c.Memory, c.Rounds = median(s.memory), len(s.memory)
	return c
}

// take adds a result; the first problem stays.
func (s *series) take(res result, to *taken) {
	if res.Problem != "" {
		s.fail(res.Problem)
		return
	}
	to.clock, to.cpu = append(to.clock, res.MS), append(to.cpu, res.CPU)
	s.most = max(s.most, res.RSSKiB)
}

func (s *series) fail(problem string) {
	if s.cell.Problem == "" {
		s.cell.Problem = problem
	}
}

// endRound keeps the round's peak memory.
func (s *series) endRound() {
	if s.most > 0 {
		s.memory = append(s.memory, float64(s.most)/1024)
	}
	s.most = 0
}

// applies measures loading and changing for every contender and size, in turn.
func (b *bench) applies(ctx context.Context) ([]ApplyCell, error) {
	var cells []ApplyCell
	for _, services := range b.sizes {
		f, err := b.files(services)
		if err != nil {
			return nil, err
		}
		runs := b.runsOf(f)
		all := make([]*series, len(runs))
		for i, r := range runs {
			all[i] = &series{cell: ApplyCell{Name: r.name, Services: services}}
		}
		for round := range b.rounds {
			if b.late() && round > 0 {
				b.note("apply, %d services: only %d of %d rounds fitted into the time", services, round, b.rounds)
				break
			}
			b.say("apply: %d services, round %d of %d", services, round+1, b.rounds)
			for i := range runs {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				at := (i + round) % len(runs) // who follows whom changes from round to round
				if all[at].cell.Problem != "" {
					continue
				}
				if err := b.inFresh(func(h *lab.Host) { runs[at].run(ctx, h, all[at]) }); err != nil {
					return nil, err
				}
				all[at].endRound()
			}
		}
		for _, s := range all {
			cells = append(cells, s.finish())
		}
	}
	return cells, nil
}

// inFresh calls fn with a host that nobody had before, when the machine has come to rest.
func (b *bench) inFresh(fn func(*lab.Host)) error {
	n, err := lab.New()
	if err != nil {
		return err
	}
	defer n.Close()
	h, err := n.Host("box")
	if err != nil {
		return err
	}
	if err := h.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	settle()
	fn(h)
	return nil
}

// run is a row of the table: a name and one round.
type run struct {
	name string
	run  func(context.Context, *lab.Host, *series)
}

// The rows of weir beside weir apply.
const weirLive, weirRun = "weir, live change", "weir run, SIGHUP"

func (b *bench) runsOf(f *files) []run {
	var runs []run
	for _, c := range b.contenders() {
		runs = append(runs, run{c.name, func(ctx context.Context, h *lab.Host, s *series) {
			s.take(b.launch(ctx, h, c.first(f)), &s.first)
			for _, to := range []int{1, 0} {
				if s.cell.Problem == "" {
					s.take(b.launch(ctx, h, c.change(f, to)), &s.change)
				}
			}
			b.launch(ctx, h, c.clear) // here, so that it is not done behind the next one's back
		}})
		if c.name != weirApply {
			continue
		}
		runs = append(runs, run{weirRun, func(ctx context.Context, h *lab.Host, s *series) {
			if err := b.daemon(ctx, h, f, s); err != nil {
				s.fail(err.Error())
			}
			b.launch(ctx, h, c.clear)
		}}, run{weirLive, func(ctx context.Context, h *lab.Host, s *series) {
			res := b.self(ctx, h, []string{liveWord, f.weir[0]})
			s.take(res, &s.first)
			s.change.clock, s.change.cpu = append(s.change.clock, res.Changes...), append(s.change.cpu, res.ChangeCPU...)
			s.health.clock, s.health.cpu = append(s.health.clock, res.Health...), append(s.health.cpu, res.HealthCPU...)
			b.launch(ctx, h, c.clear)
		}})
	}
	return runs
}

// daemon measures weir run: from its start to READY, and from SIGHUP to READY with
// another file in its place.
func (b *bench) daemon(ctx context.Context, h *lab.Host, f *files, s *series) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, errLimit)
	defer cancel()
	path, socket := filepath.Join(b.dir, "run.yaml"), filepath.Join(b.dir, "notify")
	swap := func(to int) error {
		text, err := os.ReadFile(f.weir[to])
		if err != nil {
			return err
		}
		return os.WriteFile(path, text, 0o600)
	}
	if err := swap(0); err != nil {
		return err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer os.Remove(socket)
	defer conn.Close()
	cmd := h.Command(b.weir, "run", "--config", path, "--state", path+".state")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	start := time.Now()
	p, err := h.Start(cmd)
	if err != nil {
		return err
	}
	defer p.Kill()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	if err := untilReady(ctx, conn); err != nil {
		return err
	}
	s.take(result{MS: millis(time.Since(start)), CPU: millis(processTime(p.PID()))}, &s.first)
	for _, to := range []int{1, 0} {
		if err := swap(to); err != nil {
			return err
		}
		start, before := time.Now(), processTime(p.PID())
		if err := p.Signal(syscall.SIGHUP); err != nil {
			return err
		}
		if err := untilReady(ctx, conn); err != nil {
			return err
		}
		s.take(result{MS: millis(time.Since(start)), CPU: millis(processTime(p.PID()) - before), RSSKiB: peakKiB(p.PID())}, &s.change)
	}
	return nil
}

// untilReady reads notifications until one says READY=1.
func untilReady(ctx context.Context, conn *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if strings.Contains("\n"+string(buf[:n])+"\n", "\nREADY=1\n") {
			return nil
		}
	}
}
