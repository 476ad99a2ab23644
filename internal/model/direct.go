package model

import (
	"maps"
	"net/netip"
)

// Direct reports whether backends answer the clients past the box.
func (s *Service) Direct() bool { return s.Forward == ForwardDirect }

// Wires is what a box has for services with ForwardDirect. It is immutable.
type Wires struct {
	// Devices are those by which clients come in, and those of Ways, as far as there are such,
	// with their indices.
	Devices map[string]int
	// Ways are the devices on whose segments backends are. One that is not here is not
	// reached: it is behind a router, or the box itself, or nothing leads to it.
	Ways map[netip.Addr]string
}

// Equal reports whether the two are the same; nil equals nil.
func (w *Wires) Equal(o *Wires) bool {
	if w == nil || o == nil {
		return w == o
	}
	return maps.Equal(w.Devices, o.Devices) && maps.Equal(w.Ways, o.Ways)
}

// Way returns the device on whose segment a is, and its index; ok is false where nothing
// leads there.
func (w *Wires) Way(a netip.Addr) (dev string, index int, ok bool) {
	dev, ok = w.Ways[a]
	if !ok {
		return "", 0, false
	}
	index, ok = w.Devices[dev]
	return dev, index, ok
}

// DirectServices returns the services with ForwardDirect.
func (c *Config) DirectServices() []*Service {
	var out []*Service
	for _, s := range c.Services {
		if s.Direct() {
			out = append(out, s)
		}
	}
	return out
}

// AssumedWires are Wires as c needs them: all devices are there, and backends are on the
// segment of the first device by which their service's clients come in.
func (c *Config) AssumedWires() *Wires {
	w := &Wires{Devices: map[string]int{}, Ways: map[netip.Addr]string{}}
	for _, s := range c.DirectServices() {
		for _, dev := range s.In {
			if w.Devices[dev] == 0 {
				w.Devices[dev] = len(w.Devices) + firstAssumed
			}
		}
		for _, b := range s.Backends {
			if _, there := w.Ways[b.Addr]; !there {
				w.Ways[b.Addr] = s.In[0]
			}
		}
	}
	return w
}

// firstAssumed is the index of the first device after the loopback device.
const firstAssumed = 2
