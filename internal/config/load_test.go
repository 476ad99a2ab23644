package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/model"
)

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weir.yaml")
	want := synthetic(20, 3)
	if err := os.WriteFile(path, Marshal(want), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, equalModels); diff != "" {
		t.Error(diff)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := syscall.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	huge, err := os.Create(path("huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer huge.Close()
	if err := huge.Truncate(MaxSize + 1); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("secret"), []byte("services: []"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("bad\x1bname"), []byte("5"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, want string
		is         error
	}{
		{dir, dir + ": is a directory; want a configuration file", nil},
		{path("none"), path("none") + ": can not be read: no such file or directory", fs.ErrNotExist},
		{path("huge/x"), path("huge/x") + ": can not be read: not a directory", syscall.ENOTDIR},
		{path("fifo"), path("fifo") + ": is not a regular file; want a configuration file", nil},
		{"/dev/zero", "/dev/zero: is not a regular file; want a configuration file", nil},
		{path("huge"), path("huge") + ": has 67108865 bytes; allowed: up to 67108864", nil},
		{"/proc/self/mem", "/proc/self/mem: can not be read: input/output error", syscall.EIO},
		{path("secret"), path("secret") + ": can not be read: permission denied", fs.ErrPermission},
		{path("bad\x1bname"), fmt.Sprintf("%q:1:1: a single value is not allowed", path("bad\x1bname")), nil},
	} {
		t.Run(filepath.Base(c.path), func(t *testing.T) {
			if c.is == fs.ErrPermission && os.Geteuid() == 0 {
				t.Skip("root may read everything")
			}
			cfg, err := Load(c.path)
			var list Errors
			if cfg != nil || !errors.As(err, &list) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, %v; want %s", cfg, err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
		})
	}
	if _, err := Parse("big", make([]byte, MaxSize+1)); err == nil {
		t.Error("Parse accepts more than MaxSize bytes")
	}
}

// TestGarbage reads 50 MB of one kind of nonsense after the other, and so much of it that
// the library just gets to see it. Memory is counted as all that is ever allocated,
// garbage included, so the bound holds for any collector.
func TestGarbage(t *testing.T) {
	for _, size := range garbageSizes {
		t.Run(fmt.Sprintf("%dMB", size>>20), func(t *testing.T) { garbage(t, size) })
	}
}

func garbage(t *testing.T, size int) {
	fill := func(prefix, unit string) func() []byte {
		return func() []byte { return append([]byte(prefix), bytes.Repeat([]byte(unit), size/len(unit))...) }
	}
	for name, text := range map[string]func() []byte{
		"random": func() []byte {
			b := make([]byte, size)
			rand.NewChaCha8([32]byte{1}).Read(b)
			return b
		},
		"zeroes":            func() []byte { return make([]byte, size) },
		"letters":           fill("", "a"),
		"lines":             fill("", "lorem ipsum\n"),
		"list":              fill("", "- x\n"),
		"spaces":            fill("", " "),
		"tabs":              fill("services:", "\t"),
		"brackets":          fill("services: ", "["),
		"braces":            fill("", "{"),
		"words in services": fill("services: [", "x,"),
		"keys":              fill("", "a: b\n"),
		"long line":         fill("services: [] # ", "é"),
		"one quote":         fill(`services: "`, "x"),
		"dashes":            fill("services:\n", "- - - - - - - -\n"),
		"nested dashes":     fill("services:\n", "- "),
		"nested keys":       fill("", "? "),
		"million words":     fill("services: [", strings.Repeat("x", 7)+","),
		"broken words":      fill("services: [", strings.Repeat("x", 7)+",\n"),
		"commented words":   fill("services: [", strings.Repeat("x", 12)+", #\n"),
		"anchors":           fill("services:\n- ", "&a "),
		"aliases":           fill("services:\n- &a [x]\n", "- [*a, *a, *a, *a]\n"),
		"words of one item": fill("services:\n- ", "x "),
		"one bad item":      fill("services:\n- \"a\n", "- {name: a, listen: '198.51.100.1:1', backends: [10.0.0.1]}\n"),
		"numbers":           fill("hash_seed: ", "9"),
		"deep":              fill("services:\n- a:\n", "  - b: {c: [d]}\n"),
		"ports":             fill("services: [{listen: '10.0.0.1:", "1,"),
		"syntax errors":     fill("services:\n", "- \"\n"),
		"other list":        fill("x: [", "[],"),
		"escapes":           fill(`services: ["`, `\t`),
		"comments":          fill("", "#\n"),
		"documents":         fill("", "---\n"),
		"one empty list":    fill("services:\n- name: a\n  listen: 10.0.0.1:1\n  backends:\n", "  - {}\n"),
	} {
		t.Run(name, func(t *testing.T) {
			data := text()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin := time.Now()
			_, err := Parse("weir.yaml", data)
			took := time.Since(begin)
			runtime.ReadMemStats(&after)
			if err == nil && name != "long line" {
				t.Error("accepted")
			}
			allocated := after.TotalAlloc - before.TotalAlloc
			t.Logf("%s, %d MB", took, allocated>>20)
			if allocated > uint64(2*size+640<<20) {
				t.Errorf("allocated %d MB for %d MB of text", allocated>>20, size>>20)
			}
			if took > 10*time.Second {
				t.Errorf("took %s", took)
			}
			if err != nil && len(err.Error()) > 50_000 {
				t.Errorf("a message of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestTooManyMistakes(t *testing.T) {
	_, err := Parse("weir.yaml", []byte("services: ["+strings.Repeat("x,", 5000)+"]"))
	var list Errors
	if !errors.As(err, &list) || len(list) != maxProblems+1 {
		t.Fatalf("got %d errors", len(list))
	}
	if got := strings.Count(err.Error(), "\n"); got != maxShown {
		t.Errorf("%d line ends, want %d", got, maxShown)
	}
	if want := "\nand 951 more"; !strings.HasSuffix(err.Error(), want) {
		t.Errorf("does not end with %q", want)
	}
}

func TestErrorAsJSON(t *testing.T) {
	_, err := Parse("weir.yaml", []byte("services: 5"))
	got, jerr := json.Marshal(err)
	if jerr != nil {
		t.Fatal(jerr)
	}
	want := `[{"file":"weir.yaml","line":1,"column":11,"path":"services","found":"5","message":"\"5\" (a number) is not allowed; want a list of services, [] for none"}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestSchemaDefaults holds the defaults that the schema says against the model's.
func TestSchemaDefaults(t *testing.T) {
	var s struct {
		Properties map[string]struct {
			Default uint32
			Items   struct {
				Properties map[string]struct {
					Description string
					Default     any
				}
			}
		}
	}
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	if got := s.Properties["hash_seed"].Default; got != model.DefaultHashSeed {
		t.Errorf("hash_seed: %d", got)
	}
	if got := s.Properties["mark_mask"].Default; got != model.DefaultMarkMask {
		t.Errorf("mark_mask: %d", got)
	}
	cfg := mustParse(t, `services: [{name: a, listen: "198.51.100.10:80", backends: [{address: 10.1.1.1}]}]`)
	service := cfg.Services[0]
	for key, want := range map[string]any{
		"balance": service.Balance.String(), "when_all_down": service.WhenAllDown.String(),
		"forward": "nat", "source": "keep", "sticky": "off",
		"slow_start": "off", "min_healthy": percentText(service.MinHealthy), "on_down": service.OnDown.String(),
	} {
		if got := s.Properties["services"].Items.Properties[key].Default; got != want {
			t.Errorf("%s: schema says %v, the reader %v", key, got, want)
		}
	}
	for key, p := range s.Properties["services"].Items.Properties {
		if p.Description == "" {
			t.Errorf("%s has no description", key)
		}
	}
	if service.Backends[0].Weight != 1 || service.Sticky != 0 || service.Source.Mode != model.SourceKeep {
		t.Errorf("defaults of %+v", service)
	}
}

// TestEveryKeyIsRead holds the types behind the schema against the reader.
func TestEveryKeyIsRead(t *testing.T) {
	for form, keys := range map[string][]string{
		"%s: {}\n":                               topAllowed,
		"services: [{%s: {}}]\n":                 serviceAllowed,
		"services: [{backends: [{%s: {}}]}]\n":   backendAllowed,
		"services: [{check: {%s: {}}}]\n":        checkAllowed,
		"services: [{check: {udp: {%s: {}}}}]\n": udpAllowed,
	} {
		for _, key := range keys {
			_, err := Parse("weir.yaml", fmt.Appendf(nil, form, key))
			if key == "edge" && err == nil {
				continue // it restricts nothing
			}
			if err == nil || strings.Contains(err.Error(), "is not known") {
				if key == "interfaces" && strings.Contains(fmt.Sprint(err), "key services is missing") {
					continue
				}
				t.Errorf("%s: %v", key, err)
			}
		}
	}
}

// synthetic makes a model of the given size, one listen address for each service.
func synthetic(services, backends int) *model.Config {
	cfg := &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask, Bindings: model.DefaultBindings()}
	for i := range services {
		s := &model.Service{Name: fmt.Sprintf("service-%05d", i), Listen: []model.Listen{{
			Addr: netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}), Proto: model.TCP, Ports: model.Port(80),
		}}}
		for j := range backends {
			s.Backends = append(s.Backends, model.Backend{
				Addr: netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), Ports: model.Port(8080), Weight: j + 1,
			})
		}
		cfg.Services = append(cfg.Services, s)
	}
	return cfg
}

func BenchmarkParse(b *testing.B) {
	for _, services := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			text := Marshal(synthetic(services, 10))
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse("weir.yaml", text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMarshal(b *testing.B) {
	cfg := synthetic(10_000, 10)
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(Marshal(cfg))))
	}
}
