package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/vip"
)

// kernel is an engine and what it holds open.
type kernel struct {
	*engine.Engine
	conn *nft.Conn
	keep *vip.Keeper
	lock *os.File
}

// openKernel opens the kernel of the network namespace that weir runs in. With change
// set it is for a command that changes things, of which there may be one at a time.
func openKernel(change bool) (*kernel, error) {
	k := &kernel{}
	if change {
		lock, err := lockNamespace()
		if err != nil {
			return nil, err
		}
		k.lock = lock
	}
	conn, err := nft.Open()
	if err != nil {
		k.close()
		return nil, needsRights(err)
	}
	k.conn = conn
	k.Engine = &engine.Engine{Kernel: conn}
	if change {
		if k.keep, err = vip.Open(vip.Options{}); err != nil {
			k.close()
			return nil, needsRights(err)
		}
		k.Engine.Addresses = k.keep
	}
	return k, nil
}

// close frees what is open. Rules and addresses stay.
func (k *kernel) close() {
	if k.keep != nil {
		k.keep.Close()
	}
	if k.conn != nil {
		k.conn.Close()
	}
	if k.lock != nil {
		k.lock.Close()
	}
}

// needsRights adds what to do to a refusal for lack of rights.
func needsRights(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: weir needs root, or CAP_NET_ADMIN and CAP_NET_RAW", err)
	}
	return err
}

// forwarding returns a warning for each family that cfg serves and the kernel does not
// forward: packets to backends elsewhere would end here; and for each listener with a SYN
// proxy to which no route leads.
func forwarding(cfg *model.Config) []string {
	var out []string
	for _, f := range []struct {
		family model.Family
		key    string
	}{{model.IPv4, "net.ipv4.ip_forward"}, {model.IPv6, "net.ipv6.conf.all.forwarding"}} {
		served := false
		for _, s := range cfg.Services {
			for _, b := range s.Backends {
				served = served || b.Family() == f.family
			}
		}
		if !served {
			continue
		}
		v, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(f.key, ".", "/"))
		if err == nil && strings.TrimSpace(string(v)) == "0" {
			out = append(out, fmt.Sprintf("%s is 0: the kernel forwards nothing to backends on other hosts; "+
				"type: sysctl -w %s=1", f.key, f.key))
		}
	}
	return append(out, deadEnds(cfg)...)
}
