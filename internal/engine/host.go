package engine

import (
	"fmt"
	"strings"

	"weir/internal/host"
	"weir/internal/model"
	"weir/internal/vip"
)

// Host watches what weir needs of the box and does not own. Implementation: look.Watcher.
type Host interface {
	// Set says for which configuration to watch. It does not wait.
	Set(cfg *model.Config)
	// Findings delivers all that is wrong each time that it has changed, and at first.
	Findings() <-chan []host.Finding
}

// found is the channel of what is wrong on the box.
func (l *Loop) found() <-chan []host.Finding {
	if l.Host == nil {
		return nil
	}
	return l.Host.Findings()
}

// judged takes what is wrong on the box now, and tells what is new and what has gone.
func (l *Loop) judged(list []host.Finding) {
	fresh, gone := host.Changes(l.findings, list)
	before := make(map[string]host.Severity, len(l.findings))
	for _, f := range l.findings {
		before[f.Key()] = f.Severity
	}
	l.findings = append([]host.Finding{}, list...) // not nil: it is known
	for _, f := range fresh {
		say := l.Log.Warn
		switch f.Severity {
		case host.Error:
			say = l.Log.Error
		case host.Info:
			say = l.Log.Info
		}
		say("host", "finding", f.ID, "subject", f.Subject, "severity", string(f.Severity), "message", f.String())
		from := before[f.Key()]
		if from == "" {
			from = hostOK
		}
		l.note(Event{Kind: "host", Finding: f.ID, Subject: f.Subject, From: string(from), To: string(f.Severity), Message: f.String()})
	}
	if len(gone) > 0 && l.retry != nil {
		l.retry, l.pause = nil, 0 // it may have been in the way
	}
	for _, f := range gone {
		l.Log.Info("host", "finding", f.ID, "subject", f.Subject, "severity", hostOK, "message", "no longer: "+f.Found)
		l.note(Event{Kind: "host", Finding: f.ID, Subject: f.Subject, From: string(f.Severity), To: hostOK, Message: "no longer: " + f.Found})
	}
}

// hostOK stands for the severity of what is not found, in events.
const hostOK = "ok"

// repairFailed tells of a failure of repair, once until it is another or over.
func (l *Loop) repairFailed(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == l.repairErr {
		return
	}
	l.repairErr = text
	if err == nil {
		l.Log.Info("repair works again")
		return
	}
	l.Log.Error("repair failed; trying again", "error", err)
	l.note(Event{Kind: "error", Message: "repair failed: " + text})
}

// addressWords names some addresses and their devices.
func addressWords(list []vip.Want) string {
	const most = 8
	var words []string
	for _, w := range list[:min(len(list), most)] {
		words = append(words, w.Addr.String()+" on "+w.Dev)
	}
	if n := len(list) - most; n > 0 {
		words = append(words, fmt.Sprintf("%d more", n))
	}
	return strings.Join(words, ", ")
}
