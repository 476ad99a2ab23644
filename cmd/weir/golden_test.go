package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"weir/internal/lab"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "guard" { // what weir starts is this binary here
		e := &env{args: os.Args[1:], stdout: os.Stdout, stderr: os.Stderr}
		os.Exit(e.run(context.Background()))
	}
	os.Exit(lab.Main(m))
}

// TestGolden runs the commands of each scenario, one a line of its file "commands", and
// holds what they print and their exit codes. Those of testdata/kernel need a kernel of
// their own; the rest must work without any rights.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	live, err := filepath.Glob("testdata/kernel/*.txtar")
	if err != nil || len(live) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, live...) {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".txtar")
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "kernel/") {
				lab.Require(t)
			}
			scenario(t, filepath.Join(here, file))
		})
	}
}

func scenario(t *testing.T, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	t.Setenv("STATE_DIRECTORY", t.TempDir()) // not the host's
	commands := ""
	for _, f := range ar.Files {
		switch f.Name {
		case "commands":
			commands = string(f.Data)
		case "output":
		default:
			if err := os.WriteFile(f.Name, f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got bytes.Buffer
	for _, line := range strings.Split(strings.TrimSpace(commands), "\n") {
		fmt.Fprintf(&got, "$ weir %s\n", line)
		got.WriteString(runLine(line))
	}
	for i := range ar.Files {
		if f := &ar.Files[i]; f.Name == "output" {
			if string(f.Data) != got.String() && !*update {
				t.Errorf("differs (-want +got); run with -update if it should:\n%s", cmp.Diff(string(f.Data), got.String()))
			}
			f.Data = got.Bytes()
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// runLine runs one command line, its words separated by spaces, and returns what it
// printed and its exit code. What differs from run to run is replaced.
func runLine(line string) string {
	var stdout, stderr bytes.Buffer
	e := &env{args: strings.Fields(line), stdout: &stdout, stderr: &stderr}
	code := e.run(context.Background())
	var b strings.Builder
	b.WriteString(stdout.String())
	for _, l := range strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n") {
		// The sysctls of the namespace are as they are; progress comes when it is slow.
		if l != "" && !strings.Contains(l, "forwards nothing") && !strings.Contains(l, " … ") {
			fmt.Fprintf(&b, "stderr: %s\n", l)
		}
	}
	fmt.Fprintf(&b, "exit %d\n", code)
	out := timings.ReplaceAllString(b.String(), `$1: 0`)
	out = tableSize.ReplaceAllString(tableMax.ReplaceAllString(out, `$1: 0`), "connection table: 0 of 0 entries (0%)")
	if here, err := os.Getwd(); err == nil {
		out = strings.ReplaceAll(out, here, "/etc/weir")
	}
	out = ages.ReplaceAllString(out, "0.0s ago")
	return clockTimes.ReplaceAllString(out, "TIME")
}

// ages are how long ago something was in this test.
var ages = regexp.MustCompile(`\d\.\ds ago`)

// clockTimes are times of the day, and those that are left.
var clockTimes = regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S*|(?:9m5\ds|10m0s)`)

// The size of the connection table is the machine's, and so are entries of its own.
var (
	tableMax  = regexp.MustCompile(`("(?:entries|max)"): [0-9]+`)
	tableSize = regexp.MustCompile(`connection table: [0-9]+ of [0-9]+ entries \([0-9]+%\)`)
)

var timings = regexp.MustCompile(`("(?:read|plan|commit)_ms"): [0-9.e-]+`)
