package wireguard

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

func TestLinkAlias(t *testing.T) {
	long := strings.Repeat("s", 4096)
	for _, test := range []struct {
		name, want string
		link       Link
	}{
		{"cluster", "zlayer/1 device=cluster", Link{}},
		{"service", "zlayer/1 device=service name=ns/web table=1001", Link{Service: "ns/web", Table: 1001}},
		{"escaped", "zlayer/1 device=service name=a%20b%3d%0a table=1", Link{Service: "a b=\n", Table: 1}},
		{"exactly the limit", "zlayer/1 device=service name=" + long[:209] + " table=4294967295", Link{Service: long[:209], Table: maxTable}},
		{"one over the limit", "zlayer/1 device=service name=" + linkalias.Digest(long[:210]) + " table=1", Link{Service: long[:210], Table: 1}},
		{"4,096 bytes", "zlayer/1 device=service name=" + linkalias.Digest(long) + " table=1", Link{Service: long, Table: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			alias := test.link.alias()
			if alias != test.want || len(alias) > linkalias.Max {
				t.Errorf("alias of %d bytes is %q, want %q", len(alias), alias, test.want)
			}
			got, err := parseAlias(alias)
			if err != nil || !got.Of(test.link.Service) || got.Table != test.link.Table {
				t.Errorf("it reads %+v, %v", got, err)
			}
			if got.Of("another") {
				t.Errorf("%+v is another service's", got)
			}
		})
	}
}

func TestParseAliasRefuses(t *testing.T) {
	for name, alias := range map[string]string{
		"nothing":               "",
		"foreign":               "uplink",
		"a pod's":               "zlayer/1 id=c1 if=eth0 segment=default",
		"another kind":          "zlayer/1 device=relay name=web table=1",
		"no service":            "zlayer/1 device=service name= table=1",
		"no table":              "zlayer/1 device=service name=web",
		"a table of words":      "zlayer/1 device=service name=web table=main",
		"the main table":        "zlayer/1 device=service name=web table=254",
		"too high a table":      "zlayer/1 device=service name=web table=4294967296",
		"more than the cluster": "zlayer/1 device=cluster table=1",
	} {
		if link, err := parseAlias(alias); err == nil {
			t.Errorf("%s: %q reads %+v", name, alias, link)
		}
	}
	later, err := parseAlias("zlayer/1 device=service name=web table=7 later=word")
	if diff := cmp.Diff(Link{Service: "web", Table: 7}, later); diff != "" || err != nil {
		t.Errorf("with a word of a later version, error %v (-want +got):\n%s", err, diff)
	}
}

func TestUnfinishedIsNobodys(t *testing.T) {
	link := Link{Name: "zl-x", Unfinished: true}
	if link.Of("") || link.Of("web") {
		t.Error("an unfinished link belongs to the cluster or to a service")
	}
}

func FuzzParseLinkAlias(f *testing.F) {
	for _, seed := range []string{"", Alias, "zlayer/1 device=service name=ns/web table=1001", "zlayer/1 device=service name=" + linkalias.Digest("x") + " table=7 more=%20"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, alias string) {
		link, err := parseAlias(alias)
		if err != nil {
			return
		}
		again, err := parseAlias(link.alias())
		if err != nil || !again.Of(link.Service) || again.Table != link.Table {
			t.Errorf("%q reads %+v, written %q reads %+v, %v", alias, link, link.alias(), again, err)
		}
	})
}

func FuzzLinkAlias(f *testing.F) {
	f.Add("ns/web", uint32(1001))
	f.Add(strings.Repeat("é", 300), uint32(1))
	f.Add("\x00 = ", uint32(1<<32-1))
	f.Fuzz(func(t *testing.T, service string, table uint32) {
		link := Link{Service: service, Table: int(table)}
		if service == "" || link.check() != nil {
			return
		}
		got, err := parseAlias(link.alias())
		if err != nil || !got.Of(service) || got.Of(service+"x") || got.Table != link.Table || len(link.alias()) > linkalias.Max {
			t.Errorf("%+v: %q reads %+v, %v", link, link.alias(), got, err)
		}
	})
}
