package engine

import (
	"context"
	"errors"
	"time"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// switches has the kernel end the mirrors that end by themselves, also when no weir runs then. A
// mirror that was switched on before keeps its time.
func (e *Engine) switches(ctx context.Context) error {
	var errs []error
	for _, f := range bothFamilies {
		errs = append(errs, e.switchesOf(ctx, f))
	}
	return errors.Join(errs...)
}

func (e *Engine) switchesOf(ctx context.Context, f model.Family) error {
	want := map[string]time.Duration{}
	for _, m := range e.plan.Config.Mirrors {
		if m.For > 0 && !m.Off && m.Collector(f).IsValid() {
			left := m.For
			if end, ok := e.MirrorEnds[m.Name]; ok {
				left = min(left, time.Until(end))
			}
			want[plan.MirrorKey(m.Name)] = left.Truncate(time.Millisecond)
		}
	}
	if len(want) == 0 {
		return nil
	}
	_, _, _, _, running := plan.MirrorSets(f)
	table := MirrorsTable(f)
	var gone []ruleset.Element
	err := e.Kernel.Elements(ctx, table, running, func(el nft.Elem) bool {
		// Without a weir that remembers, what is switched on keeps its time.
		if left, ok := want[el.Key]; ok && (e.MirrorEnds == nil || (left-el.Expires).Abs() < 2*time.Second) {
			delete(want, el.Key)
		} else {
			gone = append(gone, el.Element)
		}
		return true
	})
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		if err := e.Kernel.DeleteElements(ctx, table, running, gone); err != nil {
			return err
		}
		e.have = nil // the generation is another
	}
	for key, left := range want {
		if left <= 0 {
			continue
		}
		gen, err := e.Kernel.AddElements(ctx, table, running, []ruleset.Element{{Key: key}}, left)
		if err != nil {
			return err
		}
		e.Moved(gen)
	}
	return nil
}
