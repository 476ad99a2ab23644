package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weir/internal/blocklist"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/state"
)

// listsEvery is how often the files of blocklists are looked at. One that changed is read
// when it has not changed from one look to the next.
const listsEvery = 750 * time.Millisecond

// Lists keeps blocklists. Implementation: lists.Keeper. Its methods are called from several
// goroutines; those that only look must not wait for those that read files.
type Lists interface {
	Take(cfg *model.Config)
	Poll() (changed bool)
	Compiled() *blocklist.Compiled
	Status() []lists.Status
	Blocks() []lists.Block
}

// watchLists polls the blocklists in a goroutine of its own, for to read a million lines must
// not hold up anything else. What it returns waits until that has ended.
func (l *Loop) watchLists(ctx context.Context) (wait func()) {
	if l.Lists == nil {
		return func() {}
	}
	l.relisted = make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-l.After(listsEvery):
			}
			if l.Lists.Poll() {
				l.relist()
			}
		}
	}()
	return func() { <-done }
}

func (l *Loop) relist() {
	select {
	case l.relisted <- struct{}{}:
	default: // it will look anyhow
	}
}

// takeLists makes the blocklists those of cfg.
func (l *Loop) takeLists(cfg *model.Config) {
	if l.Lists == nil {
		return
	}
	l.Lists.Take(cfg)
	l.tellLists()
}

// listsChanged plans anew with what the blocklists come to now.
func (l *Loop) listsChanged() {
	l.tellLists()
	l.pending, l.unsaved = true, true // of the operators' blocks some may be over
	l.retry = nil
}

// tellLists tells of blocklists that were taken, or not, since it told last.
func (l *Loop) tellLists() {
	if l.Lists == nil {
		return
	}
	now := l.Lists.Status()
	for _, s := range now {
		was := lists.Status{}
		if i := slices.IndexFunc(l.listed, func(o lists.Status) bool { return o.Name == s.Name }); i >= 0 {
			was = l.listed[i]
		}
		switch {
		case s.Problem != "" && s.Problem != was.Problem:
			words := "not in use: "
			if s.InUse {
				words = "not taken, the last good one stays: "
			}
			l.note(Event{Kind: "blocks", List: s.Name, Message: words + s.Problem})
		case s.Name != lists.Operator && s.Problem == "" && s.InUse && (!s.ReadAt.Equal(was.ReadAt) || was.Problem != ""):
			words := fmt.Sprintf("taken: %d entries", s.Entries)
			if s.Entries == 1 {
				words = "taken: 1 entry"
			}
			if was.InUse && was.Entries != s.Entries {
				words += fmt.Sprintf(", %+d", s.Entries-was.Entries)
			}
			if s.Counts.Skipped > 0 {
				words += fmt.Sprintf("; %d lines skipped", s.Counts.Skipped)
			}
			l.Log.Info("blocklist taken", "list", s.Name, "entries", s.Entries, "skipped", s.Counts.Skipped)
			l.note(Event{Kind: "blocks", List: s.Name, Message: words})
		}
	}
	l.listed = now
}

// applyLists applies cfg with the blocklists. Where the kernel does not take these, it does
// what cfg says with those that it has, so that they hold up nothing else; that is an error
// all the same, and tried again.
func (l *Loop) applyLists(ctx context.Context, cfg *model.Config) (Report, error) {
	if l.Lists == nil {
		return l.Engine.Apply(ctx, cfg)
	}
	l.Engine.Blocked = l.Lists.Compiled()
	rep, err := l.Engine.Apply(ctx, cfg)
	p := l.Engine.Plan()
	if err == nil || ctx.Err() != nil || p == nil || p.Blocks.Compiled == l.Engine.Blocked {
		return rep, err
	}
	l.Engine.Blocked = p.Blocks.Compiled
	rep, again := l.Engine.Apply(ctx, cfg)
	return rep, errors.Join(fmt.Errorf("with other blocklists: %w", err), again)
}

// blocks returns what operators blocked.
func (l *Loop) blocks() []lists.Block {
	if l.Lists == nil {
		return l.Memory.Blocks
	}
	return l.Lists.Blocks()
}

// Relist has an operator change the blocklists: change does, outside of the loop, and words
// say it. What holds then is kept, and applied with the loop's next step.
func (l *Loop) Relist(ctx context.Context, by *state.Operator, words string, change func() error) error {
	if err := change(); err != nil {
		return err
	}
	return l.Do(ctx, func() {
		l.note(Event{Kind: "operator", By: by, Message: words})
		l.listsChanged()
		l.save()
	})
}
