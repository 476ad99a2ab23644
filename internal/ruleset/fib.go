package ruleset

import (
	"encoding/binary"
	"strconv"
)

// RouteKind is what the routes of the box make of an address: RTN_* of
// include/uapi/linux/rtnetlink.h.
type RouteKind uint32

// The kinds of addresses that are the box's own to answer for, and the one that is another's.
const (
	RouteUnicast   RouteKind = 1
	RouteLocal     RouteKind = 2
	RouteBroadcast RouteKind = 3
	RouteAnycast   RouteKind = 4
	RouteMulticast RouteKind = 5
)

var routeWords = [...]string{"unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit"}

// AppendRouteKind appends k in register layout.
func AppendRouteKind(b []byte, k RouteKind) []byte { return AppendInteger(b, uint32(k)) }

// InDevice matches packets that came in by the device of that name.
type InDevice struct{ Name string }

func (InDevice) stmt() {}

func routeTypeText(v string) string {
	n := binary.NativeEndian.Uint32([]byte(v))
	if int(n) < len(routeWords) {
		return routeWords[n]
	}
	return strconv.FormatUint(uint64(n), 10)
}

// routeType knows the box's own addresses; all else it takes for somebody's.
func (x *ruleRun) routeType() string {
	kind := RouteUnicast
	switch a := x.dst.Addr(); {
	case a.IsMulticast():
		kind = RouteMulticast
	case x.p.ToLocal != nil && x.p.ToLocal(a):
		kind = RouteLocal
	}
	return string(AppendRouteKind(nil, kind))
}

func (x *ruleRun) inDevice(s InDevice) (bool, Verdict) {
	if in, _ := x.edgeField(IIFName); in != string(AppendDevice(nil, s.Name)) {
		return x.fail("the packet came in by %s, not %s", deviceWords(DeviceOf(in)), s.Name)
	}
	return x.hold("the packet came in by %s", s.Name)
}
