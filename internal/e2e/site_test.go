package e2e

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/internal/lab"
	"weir/internal/nft"
)

// patience bounds every wait for something that must come. It is far beyond what weir
// promises, for the machine may be busy with other things.
const patience = 10 * time.Second

// silence is how long nothing must come for "nothing comes".
const silence = 300 * time.Millisecond

// site is a network with a weir on its gateway.
type site struct {
	t *testing.T
	*lab.Topology
	dir, config string
	ports       atomic.Uint32 // the last client port that port gave

	run   *lab.Process // `weir run`, if it was started
	log   logFile
	state chan string // what `weir run` tells systemd
}

// newSite builds a network; the test's end removes it.
func newSite(t *testing.T, clients, backends int) *site {
	t.Helper()
	lab.Require(t)
	dir := t.TempDir() // it goes last: a weir that runs until the network goes writes there
	topo, err := lab.Gateway(lab.GatewayOptions{Clients: clients, Backends: backends})
	check(t, err)
	t.Cleanup(func() { check(t, topo.Net.Close()) })
	s := &site{t: t, Topology: topo, dir: dir}
	s.config = filepath.Join(s.dir, "weir.yaml")
	s.ports.Store(10000)
	for _, c := range append(topo.Clients, topo.Backends...) {
		// Ports that the kernel chooses and ports that port gives keep apart.
		check(t, c.Sysctl("net.ipv4.ip_local_port_range", "40000 65535"))
	}
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// port returns a client port that was not used at this site before: no connection of
// before, and none that is still remembered, can be in the way.
func (s *site) port() uint16 { return uint16(s.ports.Add(1)) }

// write replaces the configuration, as an editor should: at once.
func (s *site) write(text string) {
	s.t.Helper()
	tmp := s.config + ".new"
	check(s.t, os.WriteFile(tmp, []byte(text), 0o600))
	check(s.t, os.Rename(tmp, s.config))
}

// result is what a weir command did.
type result struct {
	stdout, stderr string
	code           int
}

// weir runs a weir command on the gateway.
func (s *site) weir(args ...string) result {
	s.t.Helper()
	cmd := s.Gateway.Command(binary, append([]string{"--config", s.config}, args...)...)
	cmd.Env = append(os.Environ(), "STATE_DIRECTORY="+s.dir) // not the host's
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := s.Gateway.Start(cmd)
	check(s.t, err)
	timer := time.AfterFunc(time.Minute, func() { _ = p.Signal(syscall.SIGKILL) })
	defer timer.Stop()
	_ = p.Wait() // the code says it
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a weir command that has to work, and returns what it wrote.
func (s *site) must(args ...string) string {
	s.t.Helper()
	r := s.weir(args...)
	if r.code != 0 {
		s.t.Fatalf("weir %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// mustJSON is must for a report.
func (s *site) mustJSON(v any, args ...string) {
	s.t.Helper()
	out := s.must(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		s.t.Fatalf("weir %s: %v in\n%s", strings.Join(args, " "), err, out)
	}
}

// apply writes and applies a configuration, once.
func (s *site) apply(text string) {
	s.t.Helper()
	s.write(text)
	s.must("apply")
}

// start starts `weir run`, with more flags if there are, and waits until it says that it
// is ready.
func (s *site) start(flags ...string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "notify")
	_ = os.Remove(path) // of a weir before
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	check(s.t, err)
	s.state, s.log = make(chan string, 64), logFile(filepath.Join(s.dir, "log"))
	go listenStates(sock, s.state)
	s.t.Cleanup(func() { sock.Close() })
	log, err := os.Create(string(s.log))
	check(s.t, err)
	defer log.Close()
	cmd := exec.Command(binary, append([]string{"run", "--config", s.config, "--state", filepath.Join(s.dir, "state.json")}, flags...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	cmd.Stdout, cmd.Stderr = log, log
	s.run, err = s.Gateway.Start(cmd)
	check(s.t, err)
	s.awaitState("READY=1")
}

// logFile is what `weir run` writes to. It is a file, not a pipe, so that what weir said
// before it told systemd something can be read by then.
type logFile string

// String returns what was written.
func (l logFile) String() string {
	b, err := os.ReadFile(string(l))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func listenStates(sock *net.UnixConn, states chan<- string) {
	defer close(states)
	for buf := make([]byte, 4096); ; {
		n, err := sock.Read(buf)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(buf[:n])) {
			states <- strings.TrimSpace(line)
		}
	}
}

// awaitState waits for a line that `weir run` sends to systemd.
func (s *site) awaitState(want string) {
	s.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case state := <-s.state:
			if state == want {
				return
			}
		case <-s.run.Done():
			s.t.Fatalf("weir run ended before %s:\n%s", want, s.log)
		case <-timeout:
			s.t.Fatalf("weir run does not say %s within %s:\n%s", want, patience, s.log)
		}
	}
}

// reload makes `weir run` load the file again, and waits until it has.
func (s *site) reload() {
	s.t.Helper()
	before := s.refusals()
	s.hangUp()
	if s.refusals() != before {
		s.t.Fatalf("weir run did not take the file:\n%s", s.log)
	}
}

// hangUp is reload with a file that may be wrong.
func (s *site) hangUp() {
	s.t.Helper()
	check(s.t, s.run.Signal(syscall.SIGHUP))
	s.awaitState("RELOADING=1")
	s.awaitState("READY=1")
}

// refusals counts the files that `weir run` refused.
func (s *site) refusals() int { return strings.Count(s.log.String(), "configuration not taken") }

// stop ends `weir run` as systemd does.
func (s *site) stop() {
	s.t.Helper()
	check(s.t, s.run.Signal(syscall.SIGTERM))
	select {
	case <-s.run.Done():
	case <-time.After(patience):
		s.t.Fatalf("weir run does not end within %s of SIGTERM:\n%s", patience, s.log)
	}
	if err := s.run.Wait(); err != nil {
		s.t.Errorf("weir run ended with %v:\n%s", err, s.log)
	}
}

// generation returns the generation of the gateway's rules.
func (s *site) generation() uint32 {
	s.t.Helper()
	var gen uint32
	check(s.t, s.Gateway.Do(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		gen, err = c.Generation()
		return err
	}))
	return gen
}

// nft runs the nft command on the gateway.
func (s *site) nft(args ...string) string {
	s.t.Helper()
	needTool(s.t, "nft")
	out, err := s.Gateway.Run("nft", args...)
	check(s.t, err)
	return out
}

// await waits until cond holds and returns how long that took.
func await(t *testing.T, what string, cond func() bool) time.Duration {
	t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if cond() {
			return time.Since(start)
		}
		if time.Since(start) > patience {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}
