package plan

import (
	"fmt"
	"strings"

	"weir/internal/model"
	"weir/internal/ruleset"
)

var families = []model.Family{model.IPv4, model.IPv6}

// Sizes of the sets that packets fill.
const (
	// connectionsSize bounds the pairs of listener and backend that are counted.
	connectionsSize = 1 << 18
	// stickySize bounds the clients that the services of one group remember. When it
	// is full, further clients are balanced as if the service were not sticky.
	stickySize = 1 << 18
)

// setSpec is the declaration of a set. It is a value that costs nothing to make; set
// turns it into the object.
type setSpec struct {
	Name    string
	Key     ruleset.Types
	Data    ruleset.Types
	Verdict bool
	Range   bool
	Timeout bool
	Counter bool
	Size    int // of a dynamic set; 0 for one that weir fills
	Room    int // of a set that weir fills: it is a hash of fixed size then, which is faster
}

func (s setSpec) set() *ruleset.Set {
	return &ruleset.Set{
		Name: s.Name, Key: s.Key, Data: s.Data, Verdict: s.Verdict, Range: s.Range,
		Timeout: s.Timeout, Counter: s.Counter, Size: s.Size + s.Room, Dynamic: s.Size > 0,
	}
}

func compareNames(a, b string) int { return strings.Compare(a, b) }

// digit returns the "4" or "6" that ends the name of a set of family f.
func digit(f model.Family) string { return fmt.Sprint(int(f)) }

// listenerKey is the key by which a listener is known in every set.
func listenerKey(f model.Family) ruleset.Types {
	return ruleset.Types{ruleset.AddrType(f), ruleset.Protocol, ruleset.Port}
}

// twin returns the declaration for listeners on port ranges: the same set with keys that
// are ranges. Single ports stay in a hash set, which is several times faster.
func (s setSpec) twin() setSpec {
	s.Name += "r"
	s.Range = true
	return s
}

// servicesSpec: listener to the chain of its pool.
func servicesSpec(f model.Family) setSpec {
	return setSpec{Name: "services" + digit(f), Key: listenerKey(f), Verdict: true}
}

// learnSpec: listeners of sticky services, to the chain that remembers the client.
func learnSpec(f model.Family) setSpec {
	return setSpec{Name: "learn" + digit(f), Key: listenerKey(f), Verdict: true}
}

// sourceSpec: listeners whose connections get another source, to the chain that does it.
func sourceSpec(f model.Family) setSpec {
	return setSpec{Name: "source" + digit(f), Key: listenerKey(f), Verdict: true}
}

// hairpinSpec: listener and backend of each service that keeps its clients' addresses.
// A backend that calls its own service must not be answered past the gateway.
func hairpinSpec(f model.Family) setSpec {
	return setSpec{Name: "hairpin" + digit(f), Key: append(listenerKey(f), ruleset.AddrType(f))}
}

// connectionsSpec: new connections by listener and backend; packets fill it.
func connectionsSpec(f model.Family) setSpec {
	return setSpec{Name: "connections" + digit(f), Counter: true, Size: connectionsSize,
		Key: append(listenerKey(f), ruleset.AddrType(f), ruleset.Port)}
}

// trafficSpecs: packets and bytes by listener and backend, to the backend and back from
// it; packets fill them. (One set with the direction in its key would do, but nft 1.0
// lists that in a form it cannot read again.)
func trafficSpecs(f model.Family) (requests, replies setSpec) {
	spec := func(name string) setSpec {
		return setSpec{Name: name + digit(f), Counter: true, Size: connectionsSize,
			Key: append(listenerKey(f), ruleset.AddrType(f), ruleset.Port)}
	}
	return spec("requests"), spec("replies")
}

// kind is how much of a backend's address a pool's slots hold.
type kind uint8

const (
	kindAddr     kind = iota // the address; the connection's port is kept
	kindAddrPort             // the address and one port
	kindPerPort              // the address and a port that depends on the listener's port
)

var kindNames = [...]string{"addr", "addrport", "portmap"}

// slotsSpec: slot (and for kindPerPort the listener's port) to backend, for one group.
func slotsSpec(k kind, f model.Family, group int) setSpec {
	spec := setSpec{
		Name: fmt.Sprintf("%s%s/%03x", kindNames[k], digit(f), group),
		Key:  ruleset.Types{ruleset.Integer},
		Data: ruleset.Types{ruleset.AddrType(f)},
	}
	if k == kindPerPort {
		spec.Key = append(spec.Key, ruleset.Port)
	}
	if k != kindAddr {
		spec.Data = append(spec.Data, ruleset.Port)
	}
	return spec
}

// stickySpec: client to the backend that served it last. See clientKey for the key.
func stickySpec(k kind, f model.Family, group int, withPort bool) setSpec {
	key, data, name := ruleset.Types{ruleset.Integer}, ruleset.Types{ruleset.AddrType(f)}, "sticky"
	if k == kindPerPort {
		key, name = append(key, ruleset.Port), "sticky-portmap"
	}
	if withPort {
		data = append(data, ruleset.Port)
		if k != kindPerPort {
			name = "sticky-addrport"
		}
	}
	return setSpec{Name: fmt.Sprintf("%s%d/%03x", name, f, group),
		Key: append(key, ruleset.AddrType(f)), Data: data, Timeout: true, Size: stickySize}
}
