package lab

import (
	"net"

	"golang.org/x/sys/unix"
)

// etherHeaderLen is the length of an Ethernet header without VLAN tag.
const etherHeaderLen = 14

// CaptureFrames is Capture of an Ethernet device, with the link-layer addresses of what
// passes.
func (h *Host) CaptureFrames(dev string) (*Capture, error) {
	return h.capture(dev, unix.SOCK_RAW)
}

// link takes the Ethernet header off a frame.
func (p *Packet) link() {
	if len(p.Data) >= etherHeaderLen {
		p.LinkDst, p.LinkSrc = net.HardwareAddr(p.Data[:6]), net.HardwareAddr(p.Data[6:12])
		p.Data = p.Data[etherHeaderLen:]
	}
}
