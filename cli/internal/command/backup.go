package command

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/internal/config"

	"github.com/sallyport-pki/sallyport/cli/internal/backup"
	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/serve"
)

// site are the flags that say which installation is meant, as for serve.
type site struct{ file, data string }

func (s *site) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.file, "config", "", "configuration file of serve")
	cmd.Flags().StringVar(&s.data, "data", "", "data directory of serve")
	_ = cmd.MarkFlagDirname("data")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml", "json")
}

// places also gives the trust domain that the configuration names, if it does.
func (s *site) places() (p datadir.Places, trustDomain string, err error) {
	var cfg serve.Config
	if s.file != "" {
		if err := config.Load(s.file, &cfg); err != nil {
			return p, "", exit.With(exit.Usage, err)
		}
	}
	if s.data != "" {
		cfg.Data = s.data
	}
	p, err = cfg.Places()
	return p, cfg.TrustDomain, err
}

// summary is what the commands say in the end.
type summary struct {
	File string `json:"file"`
	Data string `json:"data,omitempty"`
	*backup.Manifest
}

func (a *app) summarize(format recordFormat, s summary, text string) error {
	if format == "json" {
		files := len(s.Files)
		short := *s.Manifest
		short.Files = nil
		b, err := json.Marshal(struct {
			summary
			Files int   `json:"files"`
			Bytes int64 `json:"bytes"`
		}{summary{s.File, s.Data, &short}, files, s.Bytes()})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.env.Out, string(b))
		return err
	}
	_, err := fmt.Fprintln(a.env.Out, text)
	return err
}

// tell says on standard error what is being done.
func (a *app) tell(format string, args ...any) { fmt.Fprintf(a.env.Err, format+"\n", args...) }

const backupFormatHelp = "table, or json: one object"

func (a *app) backupCommand() *cobra.Command {
	var (
		at         site
		out        string
		without    bool
		recipients []string
		format     = recordFormat("table")
	)
	cmd := &cobra.Command{
		Use:   "backup --data DIR --out FILE",
		Short: "Back up a running serve into one file",
		Long: `Write all that "sallyport serve" needs to start again into one file, while serve runs.
Run the command on the machine of serve, as the user of serve.

In the file: the databases, the audit log with its keys, the trust domain's root, the
key-encryption key (unless "kek:" in the configuration keeps it outside of DIR), the
files in DIR/secrets, and the configuration file given by --config. So the file holds the
keys of your CAs: whoever has it and the key-encryption key can issue certificates. It
has mode 0600. --recipient encrypts it for an age key (https://age-encryption.org). Make
such a key by "age-keygen -o backup.key", keep backup.key elsewhere, and give the line
that begins with age1 to --recipient.

The file appears under its name when it is whole and on disk. If --out is a directory,
the file gets a name from trust domain and time. See docs/backup.md for a timer, for what
a restore loses, and for PostgreSQL.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			places, _, err := at.places()
			if err != nil {
				return err
			}
			if out == "" {
				return exit.Errorf(exit.Usage, "give the file to write by --out")
			}
			o := backup.Options{Places: places, Config: at.file, Out: out, WithoutDatabases: without, Progress: a.tell, Now: a.now}
			if o.Recipients, err = parseRecipients(recipients); err != nil {
				return err
			}
			if info, err := os.Stat(out); err == nil && info.IsDir() {
				if o.Out, err = a.backupName(out, places.Data, len(recipients) > 0); err != nil {
					return err
				}
			}
			m, err := backup.Create(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.summarize(format, summary{File: o.Out, Manifest: m}, fmt.Sprintf(
				"Backed up into %s: databases %s; %d audit records.%s%s%s Next: sallyport backup verify %s",
				o.Out, or(strings.Join(m.Databases, ", "), "none"), m.Log.Size, kekNote(m), issuerKeyNote(places), sealNote(recipients), o.Out))
		},
	}
	at.flags(cmd)
	cmd.Flags().StringVar(&out, "out", "", "file to write, or the directory for it")
	cmd.Flags().StringArrayVar(&recipients, "recipient", nil, "age public key (age1...) to encrypt for; may be repeated")
	cmd.Flags().BoolVar(&without, "without-databases", false, "leave out databases that PostgreSQL holds, which its own tools back up")
	cmd.Flags().VarP(&format, "output", "o", backupFormatHelp)
	completeWords(cmd)
	cmd.AddCommand(a.backupVerifyCommand())
	return cmd
}

func (a *app) backupName(dir, data string, sealed bool) (string, error) {
	marker, err := datadir.Inspect(data)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("sallyport-%s-%s.tar.gz", marker.TrustDomain, a.now().UTC().Format("20060102T150405Z"))
	if sealed {
		name += ".age"
	}
	return filepath.Join(dir, name), nil
}

func kekNote(m *backup.Manifest) string {
	if m.KEK {
		return ""
	}
	return " The key-encryption key lies outside of the data directory and is NOT in it: back it up apart."
}

func issuerKeyNote(p datadir.Places) string {
	if p.IssuerKey == "" {
		return ""
	}
	return fmt.Sprintf(" The issuer has a key file of its own, %s, which is NOT in it: back it up apart.", p.IssuerKey)
}

func sealNote(recipients []string) string {
	if len(recipients) > 0 {
		return ""
	}
	return " It holds CA keys and is not encrypted: keep it like one."
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func parseRecipients(texts []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, text := range texts {
		r, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, exit.Errorf(exit.Usage, "--recipient: not an age public key (age1...)")
		}
		all = append(all, r...)
	}
	return all, nil
}

func readIdentities(file string) ([]age.Identity, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, exit.Errorf(exit.Usage, "--identity-file: %w", err)
	}
	defer f.Close()
	all, err := age.ParseIdentities(f)
	if err != nil {
		return nil, exit.Errorf(exit.Usage, "--identity-file: %s is not a file with age keys, as age-keygen writes them", file) // the cause could quote the key
	}
	return all, nil
}

const identityFileHelp = "file with the age key of an encrypted backup"

func (a *app) backupVerifyCommand() *cobra.Command {
	var (
		at       site
		identity string
		format   = recordFormat("table")
	)
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Look whether a backup is whole and could be restored",
		Long: `Unpack a backup in a temporary directory (TMPDIR) and check all of it: each file
against the manifest, the databases, the audit log against its signed checkpoint, and
that the keys fit each other. Nothing else is touched. Exit code 8 says that the backup
is damaged. When the key-encryption key is kept apart, --config or --data says where.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := backup.RestoreOptions{File: args[0], Progress: a.tell, Now: a.now}
			var err error
			if at.file != "" || at.data != "" {
				if o.Places, o.TrustDomain, err = at.places(); err != nil {
					return err
				}
			}
			if o.Identities, err = readIdentities(identity); err != nil {
				return err
			}
			m, err := backup.Verify(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.summarize(format, summary{File: args[0], Manifest: m}, fmt.Sprintf(
				"%s is whole: %s, begun %s, made by %s; %d audit records, root %s.%s",
				args[0], m.TrustDomain, m.Created.Format("2006-01-02T15:04:05Z"), m.Version, m.Log.Size, m.Log.Root, kekNote(m)))
		},
	}
	at.flags(cmd)
	cmd.Flags().StringVar(&identity, "identity-file", "", identityFileHelp)
	cmd.Flags().VarP(&format, "output", "o", backupFormatHelp)
	completeWords(cmd)
	return cmd
}

func (a *app) restoreCommand() *cobra.Command {
	var (
		at       site
		identity string
		format   = recordFormat("table")
	)
	cmd := &cobra.Command{
		Use:   "restore --data DIR FILE",
		Short: "Make a data directory from a backup",
		Long: `Make the data directory DIR, which must be empty or not there, from a backup. All of
it is checked before anything counts; a restore that is broken off leaves a directory
that serve refuses. Then start serve with the same configuration as before.

Before that, make sure that the old serve is stopped and stays stopped: two of them would
sign two histories with one key. After the start, agents come back by themselves, those
that have renewed their identity since the backup too; agents that were enrolled since
must be enrolled again. What was decided since is lost, such as locks of agents: see
docs/backup.md, "After a restore".`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			places, trustDomain, err := at.places()
			if err != nil {
				return err
			}
			o := backup.RestoreOptions{File: args[0], Places: places, TrustDomain: trustDomain, Progress: a.tell, Now: a.now}
			if o.Identities, err = readIdentities(identity); err != nil {
				return err
			}
			m, err := backup.Restore(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.summarize(format, summary{File: args[0], Data: places.Data, Manifest: m}, fmt.Sprintf(
				"Restored %s into %s: as of %s, %d audit records. Next: read docs/backup.md, \"After a restore\", then start: sallyport serve %s",
				m.TrustDomain, places.Data, m.Created.Format("2006-01-02T15:04:05Z"), m.Log.Size, at.arguments()))
		},
	}
	at.flags(cmd)
	cmd.Flags().StringVar(&identity, "identity-file", "", identityFileHelp)
	cmd.Flags().VarP(&format, "output", "o", backupFormatHelp)
	completeWords(cmd)
	return cmd
}

func (s *site) arguments() string {
	var all []string
	if s.file != "" {
		all = append(all, "--config "+s.file)
	}
	if s.data != "" {
		all = append(all, "--data "+s.data)
	}
	return strings.Join(all, " ")
}
