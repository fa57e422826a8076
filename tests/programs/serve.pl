# Answers lines over TCP, in a process for each client, which asks another over a socket pair: serve.pl PORT.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use IO::Socket::INET;
use POSIX qw(:sys_wait_h);
use Socket;

my $listener = IO::Socket::INET->new(Listen => 20, LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], ReuseAddr => 1)
    or die "cannot listen: $!";
my ($gone, $end) = (0, 0);
$SIG{CHLD} = sub { local ($!, $?); $gone++ while waitpid(-1, WNOHANG) > 0 };
$SIG{USR1} = sub { $end = 1 };
my $parent = $$;

sub answer {
    my ($client) = @_;
    local $SIG{CHLD} = 'DEFAULT';
    socketpair(my $asks, my $answers, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "no pair: $!";
    my $child = fork() // die "no child: $!";
    if ($child == 0) {
        close $asks;
        close $client;
        $answers->autoflush(1);
        while (my $line = <$answers>) {
            chomp $line;
            print $answers sha256_hex($line), "\n";
        }
        exit 0;
    }
    close $answers;
    $asks->autoflush(1);
    my $count = 0;
    while (my $line = <$client>) {
        chomp $line;
        if ($line eq 'end') {
            kill USR1 => $parent;
        } elsif ($line eq 'state') {
            $count++;
            my $echo = `echo $count $$`;
            $echo eq "$count $$\n" && $? == 0 or die "echo says $echo";
            print $client getppid() == $parent ? "$count\r\n" : "-1\r\n";
        } else {
            print $asks "$line\n";
            chomp(my $found = <$asks>);
            print $client "$found\r\n";
        }
    }
    close $asks;
    waitpid($child, 0) == $child && $? == 0 or die 'the child has not ended well';
    exit 0;
}

while (!$end) {
    my $client = $listener->accept or next;
    my $child = fork() // die "no child: $!";
    if ($child == 0) {
        close $listener;
        answer($client);
    }
    close $client;
}
