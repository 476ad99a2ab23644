package ruleset

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs; if that is meant, run the test with -update:\n%s", path, diff)
	}
}

func TestPrintGolden(t *testing.T) {
	golden(t, "fixture.nft", fixture().String())
}

func TestFingerprintIsInTheComment(t *testing.T) {
	seen := map[string]string{}
	for _, c := range fixture().Tables[0].Chains {
		for i, p := range c.Fingerprints() {
			r := &c.Rules[i]
			mustEqual(t, "fingerprint of the comment", CommentFingerprint(r.FullComment()), p)
			mustEqual(t, "length", len(p), 16)
			text := r.body() + "|" + r.Comment
			if other, dup := seen[p]; dup && other != text {
				t.Errorf("%q and %q have the same fingerprint", other, text)
			}
			seen[p] = text
			if !strings.HasSuffix(r.String(), `comment "`+r.FullComment()+`"`) {
				t.Errorf("no comment in %s", r)
			}
		}
	}
	for _, s := range []string{"", "#", "words", "words #0123", "x #0123456789abcdef0"} {
		mustEqual(t, "fingerprint of "+s, CommentFingerprint(s), "")
	}
}

func TestElementText(t *testing.T) {
	sets := map[string]*Set{}
	for _, s := range fixture().Tables[0].Sets {
		sets[s.Name] = s
	}
	for _, c := range []struct {
		set, want string
		part      int
	}{
		{"services4", "198.51.100.10 . tcp . 80 : goto service/web/ip/tcp", 0},
		{"services4r", "198.51.100.10 . tcp . 8000-8010 : goto service/rng/ip/tcp", 0},
		{"services6", "2001:db8::10 . tcp . 80 : goto service/web/ip6/tcp", 0},
		{"addrport4/00", "1048576 : 10.1.1.1 . 8080", 0},
		{"hairpin4", "198.51.100.10 . tcp . 80 . 10.1.1.1", 0},
	} {
		s := sets[c.set]
		mustEqual(t, c.set, s.ElementText(&s.Parts[c.part].Elems[0]), c.want)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Second: "1s", 10 * time.Minute: "600s", 1500 * time.Millisecond: "1500ms", 0: "0s",
	} {
		mustEqual(t, d.String(), duration(d), want)
	}
}
