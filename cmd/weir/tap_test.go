package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/tap"
)

// TestTapPrinter holds both forms of an interval. The names of the figures are held in
// internal/tap.
func TestTapPrinter(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	ms := func(v float64) *float64 { return &v }
	r := tapReport{At: time.Date(2026, 11, 22, 12, 0, 1, 0, time.UTC), Device: "eth1", Seconds: 1.25, Lost: 3, Filtered: 4, File: "x.pcapng",
		Figures: tap.Figures{Packets: 1234, Bytes: 1 << 20, Duplicates: 5, Flows: 12, Services: []tap.ServiceFigures{
			{Service: "[2001:db8::10]:53/udp", Directions: "to", PacketsTo: 7, BytesTo: 700, Connections: n(7)},
			{Service: "198.51.100.10:80/tcp", Directions: "both", PacketsTo: 500, PacketsFrom: 700, BytesTo: 1 << 18, BytesFrom: 1 << 19,
				Connections: n(10), Answered: n(9), AnswerP50: ms(0.412), AnswerP99: ms(1031.5),
				RetransmissionsTo: n(2), RetransmissionsFrom: n(0), ResetsTo: n(0), ResetsFrom: n(1)},
		}}}
	for form, want := range map[string]string{
		"text": `TIME     SERVICE                        PACKETS     BYTES    LOST   TWICE   FLOWS   CONNS ANSWERED      P50      P99 AGAIN TO/FROM RESET TO/FROM
12:00:01 all                               1234     1.0Mi       3       5      12
12:00:01 198.51.100.10:80/tcp              1200   768.0Ki                              10        9    412µs  1.0315s           2/0           0/1
12:00:01 [2001:db8::10]:53/udp                7       700                               7        -        -        -           -/-           -/-
`,
		"json": `{"at":"2026-11-22T12:00:01Z","device":"eth1","seconds":1.25,"lost":3,"filtered":4,"packets":1234,"bytes":1048576,"duplicates":5,"fragments":0,"unreadable":0,` +
			`"flows":12,"flows_new":0,"flows_kept":0,"flows_evicted":0,"services":[{"service":"[2001:db8::10]:53/udp","directions":"to","packets_to":7,"bytes_to":700,"packets_from":0,"bytes_from":0,` +
			`"connections":7,"answered":null,"answer_p50_ms":null,"answer_p99_ms":null,"retransmissions_to":null,"retransmissions_from":null,"out_of_order_to":null,"out_of_order_from":null,` +
			`"keepalives_to":null,"keepalives_from":null,"resets_to":null,"resets_from":null},{"service":"198.51.100.10:80/tcp","directions":"both","packets_to":500,"bytes_to":262144,"packets_from":700,"bytes_from":524288,` +
			`"connections":10,"answered":9,"answer_p50_ms":0.412,"answer_p99_ms":1031.5,"retransmissions_to":2,"retransmissions_from":0,"out_of_order_to":null,"out_of_order_from":null,` +
			`"keepalives_to":null,"keepalives_from":null,"resets_to":0,"resets_from":1}],"services_left_out":0,"file":"x.pcapng"}` + "\n",
	} {
		var out bytes.Buffer
		e := &env{stdout: &out, output: form}
		if err := e.tapPrinter()(r); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, out.String()); d != "" {
			t.Errorf("%s (-want +got):\n%s", form, d)
		}
	}
}
