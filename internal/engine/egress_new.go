package engine

import (
	"context"
	"errors"
	"io/fs"

	"weir/internal/egress"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
)

// readNew reads the kernel's counts of new connections that left with another source, and how
// many of each pool got another address than theirs. Sets that are not there count nothing.
func readNew(ctx context.Context, k Counters, p *plan.Plan) (news []egress.New, spilled map[string]uint64, err error) {
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		set := p.EgressNew(f)
		if set == nil {
			continue
		}
		err := k.Elements(ctx, Tables[0], set, func(e nft.Elem) bool {
			t := plan.ReadEgressTuple(f, e.Key)
			news = append(news, egress.New{Key: egress.Key{Addr: t.Source, Dest: egress.Dest{Proto: t.Proto, To: t.To}}, Count: e.Counter.Packets})
			return true
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	spilled = map[string]uint64{}
	_, set := p.EgressCounts()
	if set == nil {
		return news, spilled, nil
	}
	names := p.EgressKeys()
	err = k.Elements(ctx, Tables[0], set, func(e nft.Elem) bool {
		if name, ok := names[e.Key]; ok {
			spilled[name] = e.Counter.Packets
		}
		return true
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	return news, spilled, nil
}
