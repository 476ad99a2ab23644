package engine

import (
	"context"
	"fmt"
	"slices"

	"weir/internal/blocklist"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/state"
)

// Lists keeps blocklists. Implementation: lists.Keeper. Its methods are called from several
// goroutines; those that only look must not wait for those that read files.
type Lists interface {
	Take(cfg *model.Config)
	Poll() (changed bool)
	Compiled() *blocklist.Compiled
	Status() []lists.Status
	Blocks() []lists.Block
}

// startLists has the blocklists looked after until ctx ends. It returns what tells that there
// are news, and what waits for the end.
func (l *Loop) startLists(ctx context.Context) (news <-chan struct{}, wait func()) {
	if l.fencer == nil {
		return nil, func() {}
	}
	return l.fencer.wake, l.fencer.run(ctx)
}

// takeLists has the blocklists made those of cfg. What it returns is closed when that was
// tried, nil where there are none.
func (l *Loop) takeLists(cfg *model.Config) <-chan struct{} {
	if l.fencer == nil {
		return nil
	}
	return l.fencer.take(cfg)
}

// listsNews takes what came of the blocklists since it was called last.
func (l *Loop) listsNews(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	for _, n := range l.fencer.news() {
		switch {
		case n.read:
			l.tellLists()
			l.unsaved = true // of the operators' blocks some may be over
		case n.err != nil:
			l.Log.Error("blocklists could not be brought into the kernel; those before stay; trying again", "error", n.err, "in", n.pause)
			l.note(Event{Kind: "error", Message: "blocklists: " + n.err.Error()})
		case n.repair && n.rep.Delta.Empty(): // it can be looked at again
		case n.repair:
			l.Log.Warn("somebody changed weir's blocklists: put back", "change", n.rep.Delta.Summary(), "took", n.rep.Read+n.rep.Commit)
			words := "somebody changed weir's rules: " + n.rep.Delta.Summary()
			if lostCounts(n.rep.Delta) {
				words += "; entries of blocklists that were gone count anew"
			}
			l.note(Event{Kind: "repair", Message: words})
		case !n.rep.Delta.Empty():
			l.Log.Info("blocklists applied", "change", n.rep.Delta.Summary(), "read", n.rep.Read, "plan", n.rep.Plan, "commit", n.rep.Commit)
		}
	}
	l.arrived()
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

// blocks returns what operators blocked.
func (l *Loop) blocks() []lists.Block {
	if l.Lists == nil {
		return l.Memory.Blocks
	}
	return l.Lists.Blocks()
}

// Relist has an operator change the blocklists: change does, outside of the loop, and words
// say it. What holds then is kept. It returns when the kernel has it, or has refused it.
func (l *Loop) Relist(ctx context.Context, by *state.Operator, words string, change func() error) error {
	if err := change(); err != nil {
		return err
	}
	var tried <-chan struct{}
	if err := l.Do(ctx, func() {
		l.note(Event{Kind: "operator", By: by, Message: words})
		l.tellLists()
		if l.fencer != nil {
			tried = l.fencer.renew()
		}
		l.unsaved = true
		l.save()
	}); err != nil {
		return err
	}
	return await(ctx, tried)
}

// await waits until tried is closed; nil is.
func await(ctx context.Context, tried <-chan struct{}) error {
	if tried == nil {
		return nil
	}
	select {
	case <-tried:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
