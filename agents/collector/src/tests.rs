mod collecting;
mod faults;
mod fixture;
mod interleaved;
mod moment;
mod refusing;
