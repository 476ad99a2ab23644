package api

import (
	"context"
	"net"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"weir/internal/state"
)

// peerKey is the key under which a request's context knows who asks.
type peerKey struct{}

// withPeer notes who connected: as whom the program ran when it did, unix(7), SO_PEERCRED.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// peer returns who asks, nil where that is not known.
func peer(ctx context.Context) *state.Operator {
	cred, ok := ctx.Value(peerKey{}).(*unix.Ucred)
	if !ok {
		return nil
	}
	o := &state.Operator{UID: cred.Uid, PID: cred.Pid}
	if u, err := user.LookupId(strconv.FormatUint(uint64(cred.Uid), 10)); err == nil {
		o.User = u.Username
	}
	return o
}
