package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/internal/flow"
	"weir/internal/tap"
	"weir/internal/tap/files"
)

// tapOptions are what weir tap was asked for.
type tapOptions struct {
	device   string
	every    time.Duration
	within   time.Duration // 0: until it is told to end
	filter   *tap.Filter
	services []tap.Service
	snaplen  int            // of what is written, in bytes
	files    *files.Options // nil: nothing is written
}

// tapFlags are the words on the command line.
type tapFlags struct {
	write, rotateSize, filter  string
	rotateEvery, every, within time.Duration
	keep, snaplen              int
	services                   []string
}

// The bounds of --snaplen, in bytes: the longest headers that are looked at, and more than
// any packet.
const (
	leastSnaplen = 128
	mostSnaplen  = 262_144
)

func (e *env) tapCmd() *cobra.Command {
	var f tapFlags
	c := &cobra.Command{
		Use:   "tap DEVICE",
		Short: "Look at copies that a mirror sends here: figures each second, packets into files",
		Long: `Take in the copies of packets that a mirror (nft dup, TEE, a VXLAN device) sends to this
box, say what they show each second, and write them to pcapng files. A copy is an IP
packet that comes in by DEVICE and is not for this box. As long as weir tap runs the
kernel drops copies before they are routed, whatever ip_forward says; so nothing that
comes in by DEVICE is routed on. When it ends, or is killed, that is over.

A connection is AGAIN sent when TCP segments come that were sent before. TWICE are copies
of a packet that was mirrored already; they count nowhere else. LOST is what the kernel
had no room for: then the other figures are too small. P50 and P99 are how long it took
from the first SYN to the SYN-ACK (UDP: from the first datagram to the first answer). TO
is what clients sent to the service, FROM what it sent. - stands for what can't be known,
as when the mirror shows one direction alone. In -o json that is null.

--filter takes a part of the language of tcpdump: ip, ip6, tcp, udp, icmp, icmp6, sctp;
[src|dst] host ADDRESS, net PREFIX, port NUMBER; and, or, not, parentheses.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("tap takes one device, found %d words", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			o, err := f.options(args[0])
			if err != nil {
				return usageError{err}
			}
			return e.tap(c.Context(), o)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.write, "write", "", "write packets to `FILE`, which must not be there, or into a directory, under names with the time")
	fl.StringVar(&f.rotateSize, "rotate-size", "", "begin another file after that much: a `SIZE` such as 100MB")
	fl.DurationVar(&f.rotateEvery, "rotate-every", 0, "begin another file after that `TIME`, such as 10m")
	fl.IntVar(&f.keep, "keep", 0, "keep no more than `N` files, and remove the oldest; 0: all")
	fl.IntVar(&f.snaplen, "snaplen", mostSnaplen, "write no more than the first `BYTES` of a packet")
	fl.StringVar(&f.filter, "filter", "", "look at these packets alone: `WORDS` such as \"tcp and port 80\"")
	fl.DurationVar(&f.every, "every", time.Second, "`TIME` from one line of figures to the next")
	fl.DurationVar(&f.within, "for", 0, "end after that `TIME`; 0: when told to, with Ctrl-C or SIGTERM")
	fl.StringArrayVar(&f.services, "service", nil, "make figures for `ADDRESS:PORT/PROTOCOL` (tcp or udp; may be said again); without it, for all that SYNs go to")
	return c
}

// options checks the words.
func (f *tapFlags) options(device string) (o tapOptions, err error) {
	o = tapOptions{device: device, every: f.every, within: f.within, snaplen: f.snaplen}
	switch {
	case device == "" || len(device) > 15:
		return o, fmt.Errorf("%q is no name of a device; want 1 to 15 bytes", device)
	case f.every < 100*time.Millisecond || f.every > time.Hour:
		return o, fmt.Errorf("--every %s is not allowed; want a time from 100ms to 1h", f.every)
	case f.within < 0:
		return o, fmt.Errorf("--for %s is not allowed; want a time such as 30m, 0 for no end", f.within)
	case f.snaplen < leastSnaplen || f.snaplen > mostSnaplen:
		return o, fmt.Errorf("--snaplen %d is not allowed; want %d to %d bytes", f.snaplen, leastSnaplen, mostSnaplen)
	}
	if o.filter, err = tap.ParseFilter(f.filter); err != nil {
		return o, fmt.Errorf("--%w", err)
	}
	for _, s := range f.services {
		one, err := parseTapService(s)
		if err != nil {
			return o, err
		}
		o.services = append(o.services, one)
	}
	o.files, err = f.files(device)
	return o, err
}

// files checks what was said of files.
func (f *tapFlags) files(device string) (*files.Options, error) {
	if f.write == "" {
		if f.rotateSize != "" || f.rotateEvery != 0 || f.keep != 0 || f.snaplen != mostSnaplen {
			return nil, errors.New("--rotate-size, --rotate-every, --keep and --snaplen are for files: say --write")
		}
		return nil, nil
	}
	o := &files.Options{Path: f.write, Device: device, Snaplen: f.snaplen, RotateEvery: f.rotateEvery, Keep: f.keep}
	if f.rotateSize != "" {
		n, ok := parseSize(f.rotateSize)
		if !ok || n < 1e4 {
			return nil, fmt.Errorf("--rotate-size %s is not allowed; want a size from 10kB, such as 100MB or 1GiB", f.rotateSize)
		}
		o.RotateSize = n
	}
	info, err := os.Stat(f.write)
	switch dir := err == nil && info.IsDir(); {
	case f.rotateEvery != 0 && f.rotateEvery < time.Second:
		return nil, fmt.Errorf("--rotate-every %s is not allowed; want a time from 1s, such as 10m", f.rotateEvery)
	case f.keep < 0:
		return nil, fmt.Errorf("--keep %d is not allowed; want a number from 0, 0 for all", f.keep)
	case f.keep > 0 && !dir && o.RotateSize == 0 && o.RotateEvery == 0:
		return nil, errors.New("--keep is for several files: say --rotate-size or --rotate-every, or write into a directory")
	}
	return o, nil
}

func parseTapService(s string) (tap.Service, error) {
	ap, proto, err := flow.ParseEndpoint(s)
	if err != nil {
		return tap.Service{}, fmt.Errorf("--service: %w", err)
	}
	if proto != tap.TCP && proto != tap.UDP {
		return tap.Service{}, fmt.Errorf("--service: %q: want ADDRESS:PORT/tcp or ADDRESS:PORT/udp", s)
	}
	return tap.Service{Addr: ap, Proto: proto}, nil
}

var sizeUnits = []struct {
	name string
	size int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}}

// parseSize reads a number with a unit.
func parseSize(s string) (int64, bool) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		return int64(n) * u.size, err == nil
	}
	return 0, false
}
