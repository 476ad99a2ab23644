package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"weir/internal/config/yaml"
)

// span says which durations a key takes.
type span struct {
	lo, hi time.Duration
	off    bool   // so is the word off, for 0
	words  string // the same for people
}

// The spans. A timeout is at most the time between two checks; the reader of checks sees
// to that.
var (
	stickySpan    = span{time.Second, 24 * time.Hour, true, "off, or 1s to 24h, such as 90s, 10m, 1h30m or 1d"}
	slowStartSpan = span{time.Second, time.Hour, true, "off, or 1s to 1h, such as 30s or 5m"}
	everySpan     = span{100 * time.Millisecond, time.Hour, false, "100ms to 1h, such as 500ms, 2s or 1m"}
	timeoutSpan   = span{10 * time.Millisecond, time.Hour, false, "10ms to the time between two checks (every), such as 500ms or 1s"}
)

// parse reads a duration, with days besides what Go knows, or off. The kernel counts
// timeouts of set elements in milliseconds, so nothing finer is taken anywhere.
func (a span) parse(s string) (time.Duration, string) {
	if a.off && s == "off" {
		return 0, ""
	}
	v, ok := parseDuration(s)
	why := ""
	switch {
	case !ok:
		why = "is not a duration"
	case v < a.lo || v > a.hi:
		why = "is out of range"
	case v%time.Millisecond != 0:
		why = "is finer than a millisecond"
	default:
		return v, ""
	}
	return 0, quote(s) + " " + why + "; allowed: " + a.words
}

// duration returns a duration of the span; 0 when it is none.
func (d *decoder) duration(n yaml.Node, w where, of span) time.Duration {
	s, ok := d.str(n, w, "a duration with its unit; allowed: "+of.words)
	if !ok {
		return 0
	}
	v, why := of.parse(s)
	if why != "" {
		d.addf(n, w, "%s", why)
	}
	return v
}

func parseDuration(s string) (time.Duration, bool) {
	var days time.Duration
	if number, rest, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(number, 10, 8)
		if err != nil {
			return 0, false
		}
		days = time.Duration(n) * 24 * time.Hour
		if s = rest; s == "" {
			return days, true
		}
	}
	if strings.ContainsAny(s, "+-") {
		return 0, false
	}
	v, err := time.ParseDuration(s)
	if err != nil || v > 365*24*time.Hour {
		return v, err == nil
	}
	return days + v, true
}

// percentUnit is the finest part that a percentage can say: a hundredth of a percent. It
// makes a percentage a whole number, which comes back from a file as it was.
const percentUnit = 10_000

// percent returns "12.5%" as 0.125; 0 when it is no percentage up to hi percent.
func (d *decoder) percent(n yaml.Node, w where, hi int) float64 {
	want := fmt.Sprintf("a percentage from 0%% to %d%%, with its sign and up to two decimals, such as 10%% or 12.5%%", hi)
	s, ok := d.str(n, w, want)
	if !ok {
		return 0
	}
	v, ok := parsePercent(s)
	switch {
	case !ok:
		d.addf(n, w, "%s is not a percentage; want %s", quote(s), want)
		return 0
	case v > hi*100:
		d.addf(n, w, "%s is out of range; want %s", quote(s), want)
		return 0
	}
	return float64(v) / percentUnit
}

// parsePercent returns hundredths of a percent.
func parsePercent(s string) (int, bool) {
	number, ok := strings.CutSuffix(s, "%")
	whole, part, hasPart := strings.Cut(number, ".")
	if !ok || !digits(whole, 3) || hasPart && !digits(part, 2) {
		return 0, false
	}
	v, err := strconv.Atoi(whole + (part + "00")[:2])
	return v, err == nil
}

// digits reports whether s is one to most decimal digits.
func digits(s string, most int) bool {
	return s != "" && len(s) <= most && strings.Trim(s, "0123456789") == ""
}

// percentText is what percent reads as v.
func percentText(v float64) string {
	n := int(math.Round(v * percentUnit))
	if n%100 == 0 {
		return fmt.Sprintf("%d%%", n/100)
	}
	return fmt.Sprintf("%d.%02d%%", n/100, n%100)
}
