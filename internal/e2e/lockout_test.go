package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"weir/internal/model"
)

// nobody is a policy that leaves nobody a way in.
const nobody = "edge: {policy: drop, open: [{to: box, ports: 80/tcp}]}\nservices: []\n"

// TestLockOutConfirm takes policies that cut an SSH session off with --confirm: without a
// word they are refused, and going back, to one such or from it, nobody refuses.
func TestLockOutConfirm(t *testing.T) {
	t.Parallel()
	s := edgeSite(t)
	t.Cleanup(func() { s.killGuards() })
	open := services(service("nat", listenAll(1), backendList(on("", s.Backends...)...)))
	foreign, ssh := addrOf(s.Clients[0], model.IPv4), netip.AddrPortFrom(s.outside(model.IPv4), 22)
	from := func(args ...string) result { return s.weirFrom(t.Context(), false, foreign, ssh.Addr(), args...) }
	both := func(t *testing.T) {
		t.Helper()
		s.write(s.edgeText())
		before := s.generation()
		if r := from("apply", "--confirm", "1m"); r.code != 2 || !strings.Contains(r.stderr, "nothing opens this") {
			t.Errorf("exit code %d, %s%s", r.code, r.stdout, r.stderr)
		}
		s.wantNothingWaits()
		if s.generation() != before || len(s.guards()) > 0 {
			t.Error("a refused configuration changed something")
		}
		if r := from("apply", "--confirm", "3s", "--lock-me-out"); r.code != 0 {
			t.Fatalf("told by name: %s", r.stderr)
		}
		s.wantSilence(t, s.Clients[0], "tcp", ssh)
		await(t, "it goes back", func() bool { return s.answers(ssh) })
		// And back to one that locks out.
		s.write(nobody)
		if r := from("apply", "--lock-me-out"); r.code != 0 {
			t.Fatalf("told by name: %s", r.stderr)
		}
		s.applyConfirm(open, 3*time.Second)
		s.ask(t, s.Clients[0], "tcp", ssh)
		await(t, "it goes back to what locks out", func() bool { return !s.answers(ssh) })
		s.write(open)
		s.must("apply")
	}
	t.Run("alone", both)
	s.start()
	t.Run("running", both)
}

// TestLockOutRestart kills a weir that was told to take what leaves nobody a way in: the
// next one takes that text without a word, and no other.
func TestLockOutRestart(t *testing.T) {
	t.Parallel()
	s := edgeSite(t)
	s.write("services: []\n")
	s.start()
	s.write(nobody)
	if r := s.weir("reload"); r.code != 2 || !strings.Contains(r.stderr, "nobody a way in") {
		t.Errorf("exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	s.must("reload", "--lock-me-out")
	s.run.Kill()
	s.start()
	s.reload()
	s.stop()
	s.write(strings.Replace(nobody, "80/tcp", "81/tcp", 1))
	if r := s.weir("run"); r.code != 2 || !strings.Contains(r.stderr, "nobody a way in") {
		t.Errorf("exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
}

// answers reports whether the gateway answers the first client there.
func (s *site) answers(at netip.AddrPort) bool {
	_, err := s.Clients[0].AskFrom(within(s.t, silence), "tcp", join(addrOf(s.Clients[0], model.FamilyOf(at.Addr())), s.port()), at.String())
	return err == nil
}
