package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Machine is where the figures come from.
type Machine struct {
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	Load     string `json:"load"` // the averages of 1, 5 and 15 minutes at the start
	Go       string `json:"go"`
	Nft      string `json:"nft"`
	Iptables string `json:"iptables"`
	HAProxy  string `json:"haproxy"`
}

func thisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: "unknown"}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	m.Load = load()
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name\t: "); ok {
			m.CPU, _, _ = strings.Cut(rest, "\n")
		}
	}
	m.Nft, m.Iptables = version("nft", "--version"), version("iptables", "--version")
	m.HAProxy = version("haproxy", "-v")
	return m
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

func version(program, flag string) string {
	out, err := exec.Command(program, flag).Output()
	if err != nil {
		return program + " is not here"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// Rest of the machine, as settle understands it.
const (
	settleMost = 500 * time.Millisecond
	settleStep = 50 * time.Millisecond
	settleBusy = 0.15 // share of one processor
)

// settle waits until the machine has next to nothing to do, because the kernel takes
// namespaces and tables apart after whoever asked for it has gone on; but not for long,
// for the machine may have other work.
func settle() {
	end := time.Now().Add(settleMost)
	for time.Now().Before(end) {
		busy, start := busyTicks(), time.Now()
		time.Sleep(settleStep)
		const tick = 10 * time.Millisecond // USER_HZ
		if share := float64(busyTicks()-busy) * float64(tick) / float64(time.Since(start)); share < settleBusy {
			return
		}
	}
}

// busyTicks is what all processors have done since the start, in hundredths of a second.
func busyTicks() int {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var label string
	var user, nice, system, idle, iowait, irq, softirq int
	fmt.Sscan(string(b), &label, &user, &nice, &system, &idle, &iowait, &irq, &softirq)
	return user + nice + system + irq + softirq
}
