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
	name string
	at   yaml.Pos
	w    where
}

// trackWords are the words of the key track.
var trackWords = []string{"conntrack", "none"}

// localAllowed are the keys of a service that a program on this machine serves.
var localAllowed = []string{"name", "listen", "forward", "track", "limit", "syn_proxy", "assign"}

func (r *serviceReader) forward(n yaml.Node, w where) {
	if n.Text() == "direct" {
		r.addf(n, w, "%s is not in this release; allowed: %s", quote(n.Text()), strings.Join(model.ForwardNames(), ", "))
		r.broken = true
		return
	}
	i, ok := r.word(n, w, model.ForwardNames())
	r.s.Forward = model.Forward(i)
	r.broken = r.broken || !ok
}

func (r *serviceReader) track(n yaml.Node, w where) {
	i, _ := r.word(n, w, trackWords)
	r.s.Untracked = i == 1
}

// checkForward finds keys that make no sense with the way in which packets are forwarded.
func (r *serviceReader) checkForward() {
	for _, k := range r.said {
		switch {
		case r.s.Local() && !slices.Contains(localAllowed, k.name) && slices.Contains(serviceAllowed, k.name):
			r.add(k.at, k.w, k.name, fmt.Sprintf("key %s makes no sense with forward: local, which leaves packets to a program on this machine; allowed: %s",
				k.name, strings.Join(localAllowed, ", ")))
		case !r.s.Local() && k.name == "track" && r.s.Untracked:
			r.add(k.at, k.w, "none", "track: none is for forward: local; without conntrack no address can be translated")
		}
	}
	r.said = nil
}
