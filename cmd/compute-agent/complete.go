package main

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// completeTime bounds a completion: a shell that waits is worse than one that
// completes nothing.
const completeTime = time.Second

// completeFrom asks the bus for the words that complete an argument; in silence
// and within completeTime.
func (a *app) completeFrom(cmd *cobra.Command, prefix string, words func(ctx context.Context, s *session) []string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	s, err := a.connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer func() { _ = s.bus.Close() }()
	return matching(words(ctx, s), prefix), cobra.ShellCompDirectiveNoFileComp
}

// matching keeps the words that begin so; a description follows a tab.
func matching(words []string, prefix string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, prefix) })
}

func (a *app) completeHosts(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Flags().NArg() > 0 && strings.Contains(cmd.Use, " HOST") && !strings.Contains(cmd.Use, "--to HOST") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeFrom(cmd, prefix, func(ctx context.Context, s *session) []string {
		hosts, err := s.Hosts(ctx)
		if err != nil {
			return nil
		}
		words := make([]string, 0, len(hosts))
		for _, h := range hosts {
			words = append(words, h.Host+"\t"+hostState(h))
		}
		return words
	})
}

// completeInstances completes names, and UUIDs once the beginning of one is typed.
func (a *app) completeInstances(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeFrom(cmd, prefix, func(ctx context.Context, s *session) []string {
		all, err := s.Instances(ctx)
		if err != nil {
			return nil
		}
		var words []string
		for _, i := range all {
			about := "\t" + string(i.VMState) + " on " + i.Host
			words = append(words, i.Name+about)
			if prefix != "" && i.Name != i.UUID {
				words = append(words, i.UUID+about)
			}
		}
		return words
	})
}

func (a *app) completeMigrations(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeFrom(cmd, prefix, func(ctx context.Context, s *session) []string {
		all, err := s.Migrations(ctx)
		if err != nil {
			return nil
		}
		names := namesOf(ctx, s)
		var words []string
		for _, m := range slices.Backward(all) { // the newest first
			about := "\t" + string(m.Status) + ", " + m.Source + " to " + m.Dest
			if name := names[m.Instance]; name != "" && !slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, name+"\t") }) {
				words = append(words, name+about)
			}
			if prefix != "" || names[m.Instance] == "" {
				words = append(words, m.UUID+about)
			}
		}
		return words
	})
}

// completeMethods completes the host, then the method.
func (a *app) completeMethods(style api.Style) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return a.completeHosts(cmd, args, prefix)
		case 1:
			return matching(methodNames(style), prefix), cobra.ShellCompDirectiveNoFileComp
		default:
			return matching(argumentKeys(args[1], args[2:]), prefix), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
	}
}

// argumentKeys are the arguments of a method that are not given yet.
func argumentKeys(method string, given []string) []string {
	m, ok := api.Find(method)
	if !ok {
		return nil
	}
	var keys []string
	for _, name := range argumentNames(reflect.TypeOf(m.Args()).Elem(), false) {
		if !slices.ContainsFunc(given, func(g string) bool { return strings.HasPrefix(g, name+"=") }) {
			keys = append(keys, name+"=")
		}
	}
	return keys
}
