package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"weir/internal/model"
)

// TestEveryCheckKey gives every key of every kind of check what it cannot be. Each mistake
// is one of that key, with its place; and no key takes all of them.
func TestEveryCheckKey(t *testing.T) {
	kinds := map[model.CheckKind]string{
		model.CheckTCP: "tcp: true", model.CheckHTTP: "http: /", model.CheckHTTPS: "https: /", model.CheckUDP: "udp: {send: a}",
		model.CheckDNS: "dns: example.org", model.CheckGRPC: `grpc: ""`, model.CheckICMP: "icmp: true", model.CheckExec: "exec: [/bin/true]",
	}
	long := strings.Repeat("a", 5000)
	bad := []string{"", "~", "[]", "{}", "[[]]", "{a: b}", "-1", "0", "1.5", ".nan", ".inf", "99999999999999999999999", "1e9", "yes",
		`"\0"`, `"\e[31m"`, `"\u202e"`, `"` + long + `"`, `[` + strings.Repeat("1, ", 100) + `1]`, "-1s", "1000000h", "101%", "2026-01-01"}
	for kind, word := range kinds {
		for key, row := range checkTable {
			if !row.of.has(kind) {
				continue
			}
			refused := 0
			for _, value := range bad {
				check := word + ", " + key + ": " + value
				if key == kind.String() {
					check = key + ": " + value
				}
				text := fmt.Sprintf("services:\n  - name: web\n    listen: 198.51.100.10:80\n    check: {%s}\n    backends: [10.1.1.1]\n", check)
				_, err := Parse("weir.yaml", []byte(text))
				if err == nil {
					continue
				}
				refused++
				var list Errors
				if !errors.As(err, &list) || len(list) == 0 {
					t.Fatalf("%s: %v", check, err)
				}
				for _, e := range list {
					at := strings.HasPrefix(e.Error(), fmt.Sprintf("weir.yaml:%d:%d: ", e.Line, e.Column))
					if e.Line != 4 || e.Column < 12 || !at || e.Path != "" && !strings.HasPrefix(e.Path, "services[0].check") {
						t.Errorf("%.60s: %s", check, e)
					}
				}
			}
			if refused < len(bad)/3 {
				t.Errorf("check %s takes %d of %d values of %s", kind, len(bad)-refused, len(bad), key)
			}
		}
	}
}
