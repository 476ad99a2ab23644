package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"weir/internal/engine"
	"weir/internal/nft"
	"weir/internal/segment"
	"weir/internal/tunnel"
	"weir/internal/vip"
)

// kernel is an engine and what it holds open.
type kernel struct {
	*engine.Engine
	conn *nft.Conn
	keep *vip.Keeper
	wire *segment.Keeper
	pipe *tunnel.Keeper
	lock *os.File
}

// openKernel opens the kernel of the network namespace that weir runs in. With change
// set it is for a command that changes things, of which there may be one at a time.
func openKernel(change bool) (*kernel, error) { return openKernelAs(change, "") }

// openKernelAs is openKernel by a guard.
func openKernelAs(change bool, who string) (*kernel, error) {
	k := &kernel{}
	if change {
		lock, err := lockNamespace(who)
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
	if k.wire, err = segment.Open(); err != nil {
		k.close()
		return nil, err
	}
	k.Engine = &engine.Engine{Kernel: conn, Wires: k.wire}
	if has, err := conn.HasTimeouts(); err == nil {
		k.Engine.NoTimeouts = !has
	}
	if change {
		if k.keep, err = vip.Open(vip.Options{}); err != nil {
			k.close()
			return nil, needsRights(err)
		}
		k.Engine.Addresses = k.keep
		if k.pipe, err = tunnel.Open(); err != nil {
			k.close()
			return nil, err
		}
		k.Engine.Tunnels = k.pipe
	}
	return k, nil
}

// close frees what is open. Rules and addresses stay.
func (k *kernel) close() {
	if k.keep != nil {
		k.keep.Close()
	}
	if k.pipe != nil {
		k.pipe.Close()
	}
	if k.wire != nil {
		k.wire.Close()
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
