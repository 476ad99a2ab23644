package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/vip"
)

// The words by which the program starts itself for a part of its work.
const (
	launchWord = "launch" // run a command and tell what it took
	liveWord   = "live"   // be a process that holds the state and changes backends
	steerWord  = "steer"  // answer for packets in queues until it is ended
)

// result is what a command took.
type result struct {
	MS      float64 `json:"ms"`
	CPU     float64 `json:"cpu_ms"` // of the process, in the kernel too
	RSSKiB  int64   `json:"rss_kib"`
	Problem string  `json:"problem,omitempty"`
	// Changes and Health are for liveWord: milliseconds for each change of one backend,
	// and for each one taken out or put back.
	Changes   []float64 `json:"changes,omitempty"`
	ChangeCPU []float64 `json:"change_cpu,omitempty"`
	Health    []float64 `json:"health,omitempty"`
	HealthCPU []float64 `json:"health_cpu,omitempty"`
}

// isHelper reports whether the program was started by itself for a part of its work.
func isHelper(args []string) bool {
	return len(args) > 2 && slices.Contains([]string{launchWord, liveWord, blocksWord, steerWord}, args[1])
}

// helper does one of the parts and prints the result. It is the whole program for its
// process.
func helper(args []string) {
	var res result
	switch args[0] {
	case launchWord:
		res = launched(args[1:])
	case liveWord:
		res = live(args[1])
	case blocksWord:
		res = blockLists(args[1], len(args) > 2)
	case steerWord:
		res = answerQueues(args[1])
	}
	_ = json.NewEncoder(os.Stdout).Encode(res)
}

// launched runs a command. A process starts with the peak memory of the one that started
// it (Linux counts the memory that exec gives up), so the command is started by a small
// process and not by the one that holds all the texts.
func launched(args []string) result {
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start := time.Now()
	err := cmd.Run()
	res := result{MS: millis(time.Since(start))}
	if cmd.ProcessState != nil {
		res.CPU = millis(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime())
		if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			res.RSSKiB = ru.Maxrss
		}
	}
	if err != nil {
		res.Problem = fmt.Sprintf("%s: %v: %s", args[0], err, lastLine(out.String()))
	}
	return res
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// errLimit is the problem of what took too long.
var errLimit = errors.New("over the limit")

// launch runs a command in the host by way of a small process, within the limit.
func (b *bench) launch(ctx context.Context, h *lab.Host, args []string) result {
	return b.self(ctx, h, append([]string{launchWord}, args...))
}

// self runs this program on the host for one of its parts.
func (b *bench) self(ctx context.Context, h *lab.Host, args []string) result {
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, errLimit)
	defer cancel()
	cmd := h.Command("/proc/self/exe", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	p, err := h.Start(cmd)
	if err != nil {
		return result{Problem: err.Error()}
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Kill()
		return result{Problem: context.Cause(ctx).Error()}
	}
	var res result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		res.Problem = fmt.Sprintf("%s: no result: %v: %s", args[0], p.Wait(), lastLine(errs.String()))
	}
	return res
}

// liveChanges is how often the live process changes a backend, each time of another
// service.
const liveChanges = 20

// live applies the file and then changes backends in memory, as a health check or a call
// does it in a process that runs: a new model with one new service, and engine.Apply.
func live(file string) (res result) {
	cfg, err := config.Load(file)
	if err != nil {
		return result{Problem: err.Error()}
	}
	conn, err := nft.Open()
	if err != nil {
		return result{Problem: err.Error()}
	}
	defer conn.Close()
	keeper, err := vip.Open(vip.Options{})
	if err != nil {
		return result{Problem: err.Error()}
	}
	defer keeper.Close()
	e := &engine.Engine{Kernel: conn, Addresses: keeper}
	apply := func(next *model.Config) (took, cpu float64) {
		if res.Problem != "" {
			return 0, 0
		}
		start, before := time.Now(), processTime(os.Getpid())
		rep, err := e.Apply(context.Background(), next)
		took = millis(time.Since(start))
		switch {
		case err != nil:
			res.Problem = err.Error()
		case rep.Delta.Empty():
			res.Problem = "there was nothing to change"
		}
		cfg = next
		return took, millis(processTime(os.Getpid()) - before)
	}
	add := func(times, cpus *[]float64, next *model.Config) {
		took, cpu := apply(next)
		*times, *cpus = append(*times, took), append(*cpus, cpu)
	}
	res.MS, res.CPU = apply(cfg)
	for i := range liveChanges {
		service := i * len(cfg.Services) / liveChanges
		add(&res.Changes, &res.ChangeCPU, replaced(cfg, service))
		add(&res.Health, &res.HealthCPU, withWeight(cfg, service, 0))
		add(&res.Health, &res.HealthCPU, withWeight(cfg, service, 1))
	}
	res.RSSKiB = peakKiB(os.Getpid())
	return res
}

// processTime returns what the threads of a process have spent on processors so far, the
// kernel's work for them included: the clock of clock_getcpuclockid(3).
func processTime(pid int) time.Duration {
	const sched = 2 // CPUCLOCK_SCHED of linux/include/linux/posix-timers_types.h
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|sched), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// peakKiB returns the largest memory that a process that runs has had (VmHWM).
func peakKiB(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib int64
	fmt.Sscan(rest, &kib)
	return kib
}
