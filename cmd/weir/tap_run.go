package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"weir/internal/tap"
	"weir/internal/tap/capture"
	"weir/internal/tap/files"
)

// tapReport is what an interval brought, in -o json one line each.
type tapReport struct {
	At       time.Time `json:"at"` // when the interval ended
	Device   string    `json:"device"`
	Seconds  float64   `json:"seconds"`  // how long it was
	Lost     uint64    `json:"lost"`     // packets that the kernel had no room for
	Filtered uint64    `json:"filtered"` // copies that --filter left out
	tap.Figures
	File string `json:"file,omitempty"` // that packets are written to
}

// tapping is a weir tap that runs.
type tapping struct {
	o        tapOptions
	ring     *capture.Ring
	own      capture.Addresses
	analysis *tap.Analysis
	files    *files.Writer // nil: nothing is written
	packet   tap.Packet
	filtered uint64
	lost     uint64 // as of the last report
	last     time.Time
	allTold  struct{ packets, lost uint64 }
}

// tap looks at copies until ctx ends, or the time is over.
func (e *env) tap(ctx context.Context, o tapOptions) (err error) {
	device, err := capture.Find(o.device)
	if err != nil {
		return err
	}
	fence, err := capture.NewFence(ctx, o.device)
	if err != nil {
		return needsRights(err)
	}
	defer fence.Close()
	t := &tapping{o: o, analysis: tap.New(tap.Options{Services: o.services})}
	if t.own, err = capture.Own(); err != nil {
		return err
	}
	snaplen := leastSnaplen
	if o.files != nil {
		snaplen = o.snaplen
	}
	if t.ring, err = capture.NewRing(device, snaplen); err != nil {
		return needsRights(err)
	}
	defer t.ring.Close()
	if o.files != nil {
		if t.files, err = files.Open(*o.files, time.Now()); err != nil {
			return err
		}
		defer func() {
			if end := t.files.Close(); err == nil { // else it says the same again
				err = end
			}
		}()
	}
	if e.output != "json" {
		fmt.Fprintf(e.stderr, "weir: looking at copies that come in by %s; they are not routed on (table inet %s)\n", o.device, capture.TableName(o.device))
	}
	if err = t.loop(ctx, e.tapPrinter()); err != nil {
		return err
	}
	return e.tapEnd(t)
}

// pollMost bounds a wait, so that the end is noticed.
const pollMost = 100 * time.Millisecond

// loop takes packets and tells of them.
func (t *tapping) loop(ctx context.Context, tell func(tapReport) error) error {
	t.last = time.Now()
	end := t.last.Add(t.o.within)
	for next := t.last.Add(t.o.every); ; {
		now := time.Now()
		over := ctx.Err() != nil || t.o.within > 0 && !now.Before(end)
		if over || !now.Before(next) {
			if err := t.report(now, tell); err != nil || over {
				return err
			}
			if next = next.Add(t.o.every); !now.Before(next) {
				next = now.Add(t.o.every)
			}
		}
		if err := t.ring.Read(min(next.Sub(now), pollMost), t.take); err != nil {
			return err
		}
	}
}

// take looks at one packet.
func (t *tapping) take(at time.Duration, data []byte, wire int) error {
	ok := t.packet.Decode(data, wire)
	if t.own.Has(t.packet.Dst()) {
		return nil
	}
	if !t.o.filter.Match(&t.packet) {
		t.filtered++
		return nil
	}
	t.analysis.Add(at, &t.packet, ok)
	if t.files == nil {
		return nil
	}
	return t.files.Write(time.Unix(0, int64(at)), data, wire)
}

// report ends an interval.
func (t *tapping) report(now time.Time, tell func(tapReport) error) error {
	lost, err := t.ring.Lost()
	if err != nil {
		return err
	}
	r := tapReport{At: now, Device: t.o.device, Seconds: now.Sub(t.last).Seconds(), Lost: lost - t.lost, Filtered: t.filtered, Figures: t.analysis.Figures()}
	t.allTold.packets += r.Packets
	t.lost, t.filtered, t.last, t.allTold.lost = lost, 0, now, lost
	if t.files != nil {
		t.files.Lost(lost)
		if err := t.files.Flush(); err != nil {
			return err
		}
		r.File = t.files.Name()
	}
	// The box may have got another address.
	if t.own, err = capture.Own(); err != nil {
		return err
	}
	return tell(r)
}

// tapEnd sums up, for people.
func (e *env) tapEnd(t *tapping) error {
	if e.output == "json" {
		return nil
	}
	words := fmt.Sprintf("weir: %d packets, %d lost", t.allTold.packets, t.allTold.lost)
	if t.files != nil {
		n, packets := t.files.Written()
		words += fmt.Sprintf("; %d packets in %d files, the last one %s", packets, n, t.files.Name())
	}
	_, err := io.WriteString(e.stderr, words+"\n")
	return err
}
