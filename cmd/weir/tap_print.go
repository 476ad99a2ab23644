package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/internal/tap"
)

// tapRows is how many services a person is shown; headEvery, after how many intervals the
// header comes again.
const (
	tapRows   = 10
	headEvery = 20
)

// tapPrinter returns what writes the report of an interval, in the form that was asked for.
func (e *env) tapPrinter() func(tapReport) error {
	if e.output == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetEscapeHTML(false)
		return func(r tapReport) error {
			r.At = r.At.UTC()
			return enc.Encode(r)
		}
	}
	n := 0
	return func(r tapReport) error {
		text := tapText(r)
		if n%headEvery == 0 {
			text = tapHead() + text
		}
		n++
		_, err := e.stdout.Write([]byte(text))
		return err
	}
}

// tapLine is one line of columns.
func tapLine(cols ...string) string {
	widths := [...]int{-8, -28, 9, 9, 7, 7, 7, 7, 8, 8, 8, 13, 13}
	var b strings.Builder
	for i, c := range cols {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprintf(&b, "%*s", widths[i], c)
	}
	return strings.TrimRight(b.String(), " ") + "\n"
}

func tapHead() string {
	return tapLine("TIME", "SERVICE", "PACKETS", "BYTES", "LOST", "TWICE", "FLOWS", "CONNS", "ANSWERED", "P50", "P99", "AGAIN TO/FROM", "RESET TO/FROM")
}

// tapText is an interval for people: all of it, and the services with most packets.
func tapText(r tapReport) string {
	at := r.At.Format(time.TimeOnly)
	num := func(n uint64) string { return strconv.FormatUint(n, 10) }
	text := tapLine(at, "all", num(r.Packets), bytesText(r.Bytes), num(r.Lost), num(r.Duplicates), num(r.Flows))
	list := slices.Clone(r.Services)
	packets := func(s tap.ServiceFigures) uint64 { return s.PacketsTo + s.PacketsFrom }
	slices.SortStableFunc(list, func(a, b tap.ServiceFigures) int { return cmp.Compare(packets(b), packets(a)) })
	for _, s := range list[:min(len(list), tapRows)] {
		text += tapLine(at, s.Service, num(packets(s)), bytesText(s.BytesTo+s.BytesFrom), "", "", "", known(s.Connections), known(s.Answered),
			millisText(s.AnswerP50), millisText(s.AnswerP99),
			known(s.RetransmissionsTo)+"/"+known(s.RetransmissionsFrom), known(s.ResetsTo)+"/"+known(s.ResetsFrom))
	}
	if more := len(list) - tapRows; more > 0 {
		text += tapLine(at, fmt.Sprintf("and %d more", more))
	}
	return text
}

// known writes a figure, or that it can't be known.
func known(n *uint64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatUint(*n, 10)
}

func millisText(f *float64) string {
	if f == nil {
		return "-"
	}
	d := time.Duration(*f*1000) * time.Microsecond
	if d >= time.Millisecond {
		d = d.Round(10 * time.Microsecond)
	}
	return d.String()
}
