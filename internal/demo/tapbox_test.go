package demo

import "testing"

// TestTapReports: lines may come in pieces, and figures that can't be known are none.
func TestTapReports(t *testing.T) {
	b := &tapBox{first: make(chan struct{})}
	for _, piece := range []string{
		`{"packets":5,"lost":1,"flows_new":1,"services":[{"service":"192.0.2.1:80/tcp","connections":1,"answer_p50_ms":0.5,"retransmissions_to":null,"resets_to":1}]}` + "\n{\"pack",
		`ets":7,"lost":0,"flows_new":2,"services":[{"connections":2,"answer_p50_ms":0.1,"retransmissions_to":3,"retransmissions_from":4,"resets_from":1},`,
		`{"connections":null,"answer_p50_ms":9}]}` + "\n" + `{"packets":1`,
	} {
		if n, err := b.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	select {
	case <-b.first:
	default:
		t.Error("no report was noticed")
	}
	f := b.figures()
	if f.AnswerP50 == nil || *f.AnswerP50 != 0.5 {
		t.Errorf("p50 is %v", f.AnswerP50)
	}
	f.AnswerP50 = nil
	if want := (TapFigures{Packets: 12, Lost: 1, Flows: 3, Connections: 3, Retransmissions: 7, Resets: 2}); f != want {
		t.Errorf("%+v, want %+v", f, want)
	}
}

func TestTCPCounters(t *testing.T) {
	n := tcpCounters("Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm MaxConn ActiveOpens InSegs OutSegs\nTcp: 1 -1 7 10 12\nUdp: InDatagrams\nUdp: 3\n")
	if n["ActiveOpens"] != 7 || n["InSegs"]+n["OutSegs"] != 22 || n["MaxConn"] != 0 {
		t.Errorf("%v", n)
	}
}
