package config

import (
	"fmt"
	"slices"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// saidKey is a key of a service and its place.
type saidKey struct {
	name  string
	at    yaml.Pos
	w     where
	value yaml.Node
}

// trackWords are the words of the key track.
var trackWords = []string{"conntrack", "none"}

// localAllowed are the keys of a service that a program on this machine serves.
var localAllowed = []string{"name", "listen", "forward", "track", "limit", "syn_proxy", "assign"}

func (r *serviceReader) forward(n yaml.Node, w where) {
	i, ok := r.word(n, w, model.ForwardNames())
	r.s.Forward = model.Forward(i)
	r.broken = r.broken || !ok
}

func (r *serviceReader) track(n yaml.Node, w where) {
	i, _ := r.word(n, w, trackWords)
	r.s.Untracked = i == 1
}

// tracked finds what the key track says of a way to forward with which it must be otherwise.
func (r *serviceReader) tracked(k saidKey) {
	switch {
	case r.s.Forward == model.ForwardNAT && r.s.Untracked:
		r.add(k.at, k.w, "none", "track: none is for forward: local and direct; without conntrack no address can be translated")
	case r.s.Direct() && !r.s.Untracked && k.value.Text() == trackWords[0]:
		r.add(k.value.Pos(), k.w, trackWords[0], "conntrack never sees packets of forward: direct, which go on before it looks; allowed: none")
	}
}

// checkForward finds keys that make no sense with the way in which packets are forwarded.
func (r *serviceReader) checkForward() {
	for _, k := range r.said {
		switch {
		case r.s.Local() && !slices.Contains(localAllowed, k.name) && slices.Contains(serviceAllowed, k.name):
			r.add(k.at, k.w, k.name, fmt.Sprintf("key %s makes no sense with forward: local, which leaves packets to a program on this machine; allowed: %s",
				k.name, strings.Join(localAllowed, ", ")))
		case k.name == "track":
			r.tracked(k)
		case k.name == "in" && !r.s.Direct():
			r.add(k.at, k.w, k.name, "key in is for forward: direct; with others, packets may come in by any device")
		case r.s.Direct():
			r.checkDirectKey(k)
		}
	}
	r.said = nil
	if r.s.Direct() {
		r.checkDirect()
	}
}
