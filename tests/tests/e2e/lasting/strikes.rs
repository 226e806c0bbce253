//! What is killed, and comes back beside whatever else goes on.

use std::thread::JoinHandle;

use tests::e2e::{Agent, NatsServer, Seaweed};

/// What commands can miss for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// The message bus.
    Bus,
    /// The object store.
    Store,
}

impl Server {
    /// Its name where it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bus => "NATS server",
            Self::Store => "object store",
        }
    }
}

/// All that a supervisor starts again.
pub struct Servers {
    nats: Option<NatsServer>,
    weed: Option<Seaweed>,
    agents: Vec<Option<(&'static str, Agent)>>,
    strike: Option<Strike>,
}

/// One that is down.
struct Strike {
    name: &'static str,
    server: Option<Server>,
    back: Option<JoinHandle<Victim>>,
}

/// It is on its thread's hands until it is back.
enum Victim {
    Bus(NatsServer),
    Store(Seaweed),
    Agent(usize, &'static str, Agent),
}

impl Victim {
    /// `kill -9`; whether it was alive.
    fn kill(&mut self) -> bool {
        match self {
            Self::Bus(nats) => nats.kill(),
            Self::Store(weed) => weed.kill(),
            Self::Agent(_, _, agent) => agent.kill(),
        }
    }

    fn start_again(&mut self) {
        match self {
            Self::Bus(nats) => nats.start_again(),
            Self::Store(weed) => weed.start_again(),
            Self::Agent(_, _, agent) => agent.start_again(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Bus(_) => Server::Bus.name(),
            Self::Store(_) => Server::Store.name(),
            Self::Agent(_, name, _) => name,
        }
    }

    fn server(&self) -> Option<Server> {
        match self {
            Self::Bus(_) => Some(Server::Bus),
            Self::Store(_) => Some(Server::Store),
            Self::Agent(..) => None,
        }
    }
}

impl Servers {
    /// All of a site, with what its agents are called where they are counted.
    pub fn new(nats: NatsServer, weed: Seaweed, agents: Vec<(&'static str, Agent)>) -> Self {
        let agents = agents.into_iter().map(Some).collect();
        Self { nats: Some(nats), weed: Some(weed), agents, strike: None }
    }

    /// Whether one is still down.
    pub fn is_struck(&self) -> bool {
        self.strike.is_some()
    }

    /// Which server is down.
    pub fn away(&self) -> Option<Server> {
        self.strike.as_ref()?.server
    }

    /// Kills a server; a thread starts it again.
    pub fn strike_server(&mut self, server: Server) {
        let victim = match server {
            Server::Bus => self.nats.take().map(Victim::Bus),
            Server::Store => self.weed.take().map(Victim::Store),
        };
        self.strike(victim);
    }

    /// Kills an agent, or one that is called this; a thread starts it again.
    pub fn strike_agent(&mut self, called: Option<&str>, draw: usize) {
        let is_meant = |agent: &Option<(&str, Agent)>| {
            called.is_none_or(|called| agent.as_ref().is_some_and(|(name, _)| *name == called))
        };
        let meant = self.agents.iter().enumerate().filter(|(_, agent)| is_meant(agent));
        let meant: Vec<usize> = meant.map(|(which, _)| which).collect();
        let which = meant[draw % meant.len()];
        let victim = self.agents[which].take();
        self.strike(victim.map(|(name, agent)| Victim::Agent(which, name, agent)));
    }

    fn strike(&mut self, victim: Option<Victim>) {
        let mut victim = victim.expect("only one is down at a time");
        let (name, server) = (victim.name(), victim.server());
        assert!(victim.kill(), "{name}: it had ended by itself");
        let back = std::thread::spawn(move || {
            victim.start_again();
            victim
        });
        self.strike = Some(Strike { name, server, back: Some(back) });
    }

    /// What has come back since it was asked last.
    pub fn came_back(&mut self) -> Option<&'static str> {
        let mut strike = self.strike.take_if(|strike| strike.has_ended())?;
        let back = strike.back.take()?.join();
        match back.unwrap_or_else(|_| panic!("{} does not come back", strike.name)) {
            Victim::Bus(nats) => self.nats = Some(nats),
            Victim::Store(weed) => self.weed = Some(weed),
            Victim::Agent(which, name, agent) => self.agents[which] = Some((name, agent)),
        }
        Some(strike.name)
    }

    /// Ends all agents as their supervisor would.
    pub fn end(&mut self) {
        for (name, agent) in self.agents.iter_mut().flatten() {
            let ended = agent.terminate();
            assert!(ended.status.success(), "{name}: {ended}");
        }
    }
}

impl Strike {
    fn has_ended(&self) -> bool {
        self.back.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Nothing that a failed test has struck comes back after it.
impl Drop for Strike {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            drop(back.join());
        }
    }
}
