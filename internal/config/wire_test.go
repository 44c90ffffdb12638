package config_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/config"
)

func TestTransport(t *testing.T) {
	l, err := config.Load(from("[rpc]\nurl = \"nats://h1:4222, nats://h2:4222\"\nprefix = \"lab\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	c := l.RPC.Transport("me")
	if d := cmp.Diff([]string{"nats://h1:4222", "nats://h2:4222"}, c.URLs); d != "" || c.Name != "me" || c.Prefix != "lab" || c.AutoSetup {
		t.Errorf("Transport = %+v", c)
	}
	l, err = config.Load(from("[rpc]\nurl = \"embedded\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c := l.RPC.Transport("me"); len(c.URLs) != 0 || !c.AutoSetup {
		t.Errorf("Transport of the embedded server = %+v", c)
	}
}
