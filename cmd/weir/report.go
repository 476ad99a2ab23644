package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// print writes v as JSON when that was asked for, and else what text writes.
func (e *env) print(v any, text func() error) error {
	if e.output != "json" {
		return text()
	}
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table writes rows under a header, in columns, and below each row that has a note a line
// with that.
func (e *env) table(header string, rows [][]string, notes []string) error {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(header, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	n := -1 // of the row; the header is none
	for line := range strings.Lines(text.String()) {
		if n >= 0 && notes[n] != "" {
			line += notes[n] + "\n"
		}
		if _, err := fmt.Fprint(e.stdout, line); err != nil {
			return err
		}
		n++
	}
	return nil
}

// progress says on stderr, once a second, that something takes its time. Call what it
// returns when it is done.
func (e *env) progress(words string) (done func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		start := time.Now()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				fmt.Fprintf(e.stderr, "weir: %s … %d s\n", words, int(time.Since(start).Seconds()))
			}
		}
	}()
	return func() { close(stop); <-ended }
}

// plural returns "1 service", "2 services".
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
