package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const permissionsHelp = `Print what a NATS server has to be configured with so that a credential can do the work of one
HOST's agent, or of a controller, and nothing else. Nothing is asked and nothing is changed.

A host's credential acts as that host only: it answers its calls, reads its casts, writes its events
and views, and speaks to other hosts with the few methods that a migration needs. A controller's
asks all hosts, reads what they publish, runs nats-setup, and can't publish as a host.

Name all hosts of a server in one command to get one block for its configuration file; HOST=KEY gives each the
public part of its NKey (nk -gen user -pubout). Without a key it is a user name, which is what a
client certificate is mapped to (verify_and_map). --format json prints the bare lists, for nsc.
docs/security.md tells the whole way.`

// permissionsFlags are the flags of nats-permissions.
type permissionsFlags struct{ format, nkey, user string }

func (a *app) natsPermissionsCommand() *cobra.Command {
	var f permissionsFlags
	c := &cobra.Command{
		Use: "nats-permissions HOST|controller …", Short: "Print the NATS server's configuration for least privilege",
		Long: permissionsHelp, Args: cobra.MinimumNArgs(1),
		Example: "  compute-agent nats-permissions controller=UAB… node1=UCD… node2=UEF… > /etc/nats/authorization.conf\n" +
			"  compute-agent nats-permissions node1 --user CN=node1.example\n  compute-agent nats-permissions node1 --format json",
		ValidArgsFunction: cobra.FixedCompletions([]string{string(rpc.RoleController)}, cobra.ShellCompDirectiveNoFileComp),
		RunE:              func(_ *cobra.Command, args []string) error { return a.permissions(args, f) },
	}
	c.Flags().StringVar(&f.format, "format", "nats", "nats: for the server's configuration file; json: the lists alone")
	c.Flags().StringVar(&f.nkey, "nkey", "", "public part of the NKey (U…) that it logs in with; one HOST only")
	c.Flags().StringVar(&f.user, "user", "", "user name, or subject of the certificate, that it logs in with; one HOST only")
	a.must(c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"nats", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

func (a *app) permissions(args []string, f permissionsFlags) error {
	if f.format != "nats" && f.format != "json" {
		return usage("--format %q: use nats or json", f.format)
	}
	if len(args) > 1 && (f.nkey != "" || f.user != "") {
		return usage("--nkey and --user are for one HOST; for several write HOST=KEY")
	}
	c, err := a.controllerConfig()
	if err != nil {
		return err
	}
	all := make([]rpc.Rights, 0, len(args))
	var users strings.Builder
	for _, arg := range args {
		rights, who, err := permissionsOf(c.RPC, arg, f)
		if err != nil {
			return err
		}
		all = append(all, rights)
		users.WriteString(rights.Config(who))
	}
	if f.format == "json" || a.output == outputJSON {
		return a.permissionsJSON(all)
	}
	_, err = fmt.Fprintf(a.out, "# Made by compute-agent nats-permissions; include it in the configuration of every server of the cluster.\n"+
		"authorization {\n  users: [\n%s  ]\n}\n", users.String())
	return err
}

// permissionsOf reads HOST, HOST=KEY or controller.
func permissionsOf(c config.RPC, arg string, f permissionsFlags) (rpc.Rights, rpc.Identity, error) {
	name, key, _ := strings.Cut(arg, "=")
	who := rpc.Identity{NKey: key, User: f.user}
	if f.nkey != "" {
		who.NKey = f.nkey
	}
	if who.NKey != "" && (len(who.NKey) != 56 || who.NKey[0] != 'U') {
		return rpc.Rights{}, who, usage("%q is not the public part of a user's NKey: it begins with U and has 56 characters (nk -inkey SEEDFILE -pubout)", who.NKey)
	}
	if who.User == "" {
		who.User = name
	}
	role := rpc.RoleHost
	if name == string(rpc.RoleController) {
		role = rpc.RoleController
	}
	rights, err := rpc.Permissions(c.Prefix, role, name, api.PeerMethods()...)
	return rights, who, err
}

func (a *app) permissionsJSON(all []rpc.Rights) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if len(all) == 1 {
		return enc.Encode(all[0])
	}
	return enc.Encode(all)
}
