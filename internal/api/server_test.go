package api_test

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

// send writes a request as it stands and returns the answer.
func send(t *testing.T, path, method, target, body string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return res, string(text)
}

// TestGolden sends the requests of each scenario, one a line, and holds the answers.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			f := newFake()
			switch filepath.Base(file) {
			case "good.txtar":
				f.health = map[engine.Member]state.Health{{Service: "dns", Backend: "10.1.2.1:53-54"}: {Down: true, Reason: "refused", Since: epoch, CameUp: true}}
			case "reload-refused.txtar":
				f.reload = config.Errors{{File: "weir.yaml", Line: 3, Column: 5, Path: "services[0].name", Msg: "is missing"},
					{File: "weir.yaml", Line: 7, Column: 1, Msg: "unknown key \"x\""}}
				f.refuses = true
			case "wrong.txtar":
				f.refuses = true
			case "failing.txtar":
				f.refuses = true
				f.applied, f.reload = false, errors.New("out of order")
				f.say = engine.ErrNoBackend
			}
			path, _ := serve(t, f)
			var got bytes.Buffer
			for line := range strings.Lines(string(ar.Files[0].Data)) {
				words := append(strings.SplitN(strings.TrimSpace(line), " ", 3), "")
				res, text := send(t, path, words[0], words[1], words[2])
				if ct := res.Header.Get("Content-Type"); ct != "application/json" && ct != "application/x-ndjson" {
					t.Errorf("%s: content type %q", line, ct)
				}
				fmt.Fprintf(&got, "> %s< %d %s", line, res.StatusCode, text)
			}
			if f.refuses && f.waiting != nil {
				t.Errorf("refused, and it waits all the same: %v", f.waiting)
			}
			if f.refuses && len(f.blocks) > 0 {
				t.Errorf("a request that was refused blocks %v", f.blocks)
			}
			if f.refuses && len(f.words) > 0 {
				t.Errorf("refused, and taken all the same: %v", f.words)
			}
			if want := string(ar.Files[1].Data); want != got.String() && !*update {
				t.Errorf("differs (-want +got); run with -update if it should:\n%s", cmp.Diff(want, got.String()))
			}
			if ar.Files[1].Data = got.Bytes(); *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestSession sees that whoever loads a configuration is told of the session that asks.
func TestSession(t *testing.T) {
	f := newFake()
	path, _ := serve(t, f)
	c := api.NewClient(path)
	for name, load := range map[string]func(r api.ReloadRequest) error{
		"reload": func(r api.ReloadRequest) error { _, err := c.Reload(t.Context(), r); return err },
		"apply": func(r api.ReloadRequest) error {
			_, err := c.Apply(t.Context(), api.ApplyRequest{ReloadRequest: r, Confirm: time.Minute})
			return err
		},
	} {
		for _, want := range []api.ReloadRequest{{SSHConnection: "203.0.113.1 50000 198.51.100.1 22"}, {LockMeOut: true}} {
			if err := load(want); err != nil {
				t.Fatal(err)
			}
			if got := f.session(); got != want {
				t.Errorf("%s of %+v: %+v", name, want, got)
			}
		}
	}
}

// TestWords sees what each word makes of what was said before.
func TestWords(t *testing.T) {
	f := newFake()
	path, _ := serve(t, f)
	c := api.NewClient(path)
	const web, one = "web", "10.1.1.1:8080"
	five := 5
	for _, step := range []struct {
		name string
		do   func() (api.Backend, error)
		want func(state.Word) bool
		is   state.Name
	}{
		{"drain", func() (api.Backend, error) { return c.Drain(t.Context(), web, one, 0) },
			func(w state.Word) bool { return w.Admin == state.Drain && w.Deadline.IsZero() && w.Weight == nil }, state.Draining},
		{"weight", func() (api.Backend, error) { return c.Weight(t.Context(), web, one, &five) },
			func(w state.Word) bool { return w.Admin == state.Drain && *w.Weight == 5 }, state.Draining},
		{"drain with a deadline", func() (api.Backend, error) { return c.Drain(t.Context(), web, one, 10*time.Minute) },
			func(w state.Word) bool {
				left := time.Until(w.Deadline)
				return w.Admin == state.Drain && left > 9*time.Minute && left <= 10*time.Minute && *w.Weight == 5
			}, state.Draining},
		{"disable", func() (api.Backend, error) { return c.Disable(t.Context(), web, one) },
			func(w state.Word) bool { return w.Admin == state.Disable && w.Deadline.IsZero() && *w.Weight == 5 }, state.Disabled},
		{"enable keeps the weight", func() (api.Backend, error) { return c.Enable(t.Context(), web, one) },
			func(w state.Word) bool { return w.Admin == state.None && w.Deadline.IsZero() && *w.Weight == 5 }, state.Up},
		{"weight of the file", func() (api.Backend, error) { return c.Weight(t.Context(), web, one, nil) },
			func(w state.Word) bool { return w.Admin == state.None && w.Weight == nil }, state.Up},
	} {
		b, err := step.do()
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if by := f.said(); by == nil || int(by.UID) != os.Getuid() || int(by.PID) != os.Getpid() {
			t.Errorf("%s: said by %+v, want uid %d, pid %d", step.name, by, os.Getuid(), os.Getpid())
		}
		if w := f.word(web, one); !step.want(w) || b.State != step.is || b.Backend != one || !b.Applied {
			t.Errorf("%s: word %+v, answer %+v", step.name, w, b)
		}
	}
}

// TestBackendByAnyName finds backends by what people type.
func TestBackendByAnyName(t *testing.T) {
	path, _ := serve(t, newFake())
	c := api.NewClient(path)
	for _, n := range []struct {
		service, word, want string
		code                int
	}{
		{"web", "10.1.1.1:8080", "10.1.1.1:8080", 0},
		{"web", "10.1.1.1", "10.1.1.1:8080", 0},
		{"web", "10.1.1.2:8081", "10.1.1.2:8081", 0},
		{"web", "10.1.1.2", "", 409},
		{"web", "2001:DB8:1:0::1", "[2001:db8:1::1]:8080", 0},
		{"web", "[2001:db8:1::1]", "[2001:db8:1::1]:8080", 0},
		{"web", "[2001:db8:1:0::1]:8080", "[2001:db8:1::1]:8080", 0},
		{"web", "::ffff:10.1.1.1", "10.1.1.1:8080", 0},
		{"web", "10.1.1.1:8081", "", 404},
		{"web", "a/b c%", "", 404},
		{"nobody", "10.1.1.1", "", 404},
		{"dns", "10.1.2.1:53-54", "10.1.2.1:53-54", 0},
		{"dns", "10.1.2.1", "10.1.2.1:53-54", 0},
		{"dns", "10.1.2.1:53", "", 404},
		{"dns", "2001:db8:2::1", "2001:db8:2::1", 0},
	} {
		b, err := c.Drain(t.Context(), n.service, n.word, 0)
		var said *api.Error
		switch {
		case n.code == 0 && (err != nil || b.Backend != n.want):
			t.Errorf("%s %s: %+v, %v; want %s", n.service, n.word, b, err, n.want)
		case n.code != 0 && (!errors.As(err, &said) || said.Code != n.code):
			t.Errorf("%s %s: %+v, %v; want status %d", n.service, n.word, b, err, n.code)
		}
	}
}

// TestLargeBodies sees that a body is not read beyond its bound.
func TestLargeBodies(t *testing.T) {
	path, _ := serve(t, newFake())
	large := `{"deadline": "` + strings.Repeat("1", 1<<20) + `"}`
	const target = "/v1/backends/web/10.1.1.1/drain"
	res, text := send(t, path, "POST", target, large)
	if res.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(text, "65536") {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	deep := strings.Repeat("[", 60000)
	if res, text = send(t, path, "POST", target, deep); res.StatusCode != http.StatusBadRequest {
		t.Errorf("%d %s", res.StatusCode, text)
	}
}

// FuzzRequests sees that nothing but the Controller's own failure is answered with 500,
// that every refusal is an Error, and that nothing is said of backends that are not there.
func FuzzRequests(f *testing.F) {
	f.Add("POST", "/v1/backends/web/10.1.1.1/drain", `{"deadline":"10m"}`)
	f.Add("POST", "/v1/backends/web/%5B2001:db8:1::1%5D:8080/weight", `{"weight":null}`)
	f.Add("POST", "/v1/backends/../web//enable", "")
	f.Add("GET", "/v1/status?service=web&service=%00", "")
	f.Add("GET", "/v1/events?since=18446744073709551616", "")
	f.Add("POST", "/v1/apply", `{"confirm":"1e9h"}`)
	f.Add("POST", "/v1/confirm", `{}`)
	f.Add("POST", "/v1/backends/%2e%2e/%2f/disable", `{"a":1}`)
	f.Add("POST", "/v1/backends/web/10.1.1.1/weight", `{"weight":1e2}{}`)
	f.Fuzz(func(t *testing.T, method, target, body string) {
		weir := newFake()
		r, err := http.NewRequest(method, "http://weir", strings.NewReader(body))
		if err != nil {
			t.Skip()
		}
		if r.URL, err = r.URL.Parse(target); err != nil || strings.Contains(target, "follow") {
			t.Skip()
		}
		w := httptest.NewRecorder()
		api.New(weir, "", slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
		if w.Code != 200 && (w.Code < 400 || w.Code >= 500 || !strings.HasPrefix(w.Body.String(), `{"error":"`)) {
			t.Errorf("%s %s %q: %d %s", method, target, body, w.Code, w.Body)
		}
		for m := range weir.words {
			if weir.cfg.Service(m.Service) == nil || w.Code != 200 {
				t.Errorf("%s %s %q: %d, and something is said of %v", method, target, body, w.Code, m)
			}
		}
	})
}
