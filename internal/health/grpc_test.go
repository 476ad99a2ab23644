package health

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"weir/internal/model"
)

var quiet = log.New(io.Discard, "", 0)

// grpcServer answers health checks: of the service "well" SERVING, of "ill" NOT_SERVING,
// and in other ways of others.
func grpcServer(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Method != http.MethodPost || r.URL.Path != grpcMethod || r.Header.Get("Te") != "trailers" || len(body) < grpcPrefix {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	_, service, _ := strings.Cut(string(body[grpcPrefix:]), "\x0a"+string(rune(max(0, len(body)-grpcPrefix-2))))
	w.Header().Set("Content-Type", "application/grpc+proto")
	status := "0"
	switch service {
	case "", "well":
		w.Write(prefixed("\x08\x01"))
	case "ill":
		w.Write(prefixed("\x08\x02"))
	case "garbage":
		io.WriteString(w, "\x00\xff\xff\xff\xffgarbage")
	case "endless":
		for range 64 {
			w.Write(make([]byte, 4096))
		}
	case "cut":
		w.Write(prefixed("\x08\x01")[:6])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case "html":
		w.Header().Set("Content-Type", "text/html")
	case "503":
		w.WriteHeader(http.StatusServiceUnavailable)
	case "headers":
		w.Header().Set("Grpc-Status", "5")
		w.Header().Set("Grpc-Message", "unknown service")
		return
	default:
		status = "13"
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
}

var grpcCases = []struct{ service, kind, detail string }{
	{"", "good", "SERVING"},
	{"well", "good", "SERVING"},
	{"ill", "bad", "NOT_SERVING"},
	{"garbage", "bad", "malformed"},
	{"endless", "bad", ""},
	{"cut", "bad", ""},
	{"html", "bad", "not gRPC but text/html"},
	{"503", "bad", "HTTP 503"},
	{"headers", "bad", "gRPC status 5 unknown service"},
	{"other", "bad", "gRPC status 13"},
}

func TestGRPCPlain(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(grpcServer), Protocols: new(http.Protocols), ErrorLog: quiet}
		s.Protocols.SetUnencryptedHTTP2(true)
		done := make(chan struct{})
		go func() { s.Serve(l); close(done) }()
		defer func() { s.Close(); <-done }()
		at := l.Addr().(*net.TCPAddr).AddrPort()
		for _, c := range grpcCases {
			t.Run(c.service, func(t *testing.T) {
				r := ask(new(Probes), at, model.Check{Kind: model.CheckGRPC, Plain: true, Name: c.service})
				expect(t, r, c.kind, c.detail)
			})
		}
		for name, answer := range map[string]string{"http/1": httpAnswer(200, "", ""), "nothing": "", "garbage": strings.Repeat("\xff", 100)} {
			t.Run(name, func(t *testing.T) {
				at := listen(t, addr, answering(answer))
				expect(t, ask(new(Probes), at, model.Check{Kind: model.CheckGRPC, Plain: true}), "bad", "")
			})
		}
	})
}

func TestGRPCOverTLS(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		at, roots := secure(t, addr, grpcServer)
		for _, c := range grpcCases {
			t.Run(c.service, func(t *testing.T) {
				check := model.Check{Kind: model.CheckGRPC, Name: c.service, Verify: true, Host: "example.com"}
				expect(t, ask(&Probes{Roots: roots}, at, check), c.kind, c.detail)
			})
		}
		expect(t, ask(new(Probes), at, model.Check{Kind: model.CheckGRPC, Verify: true}), "bad", "certificate")
	})
}
