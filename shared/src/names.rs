//! Closed sets of names, each an enum with one text per member.

/// Declares an enum whose members have one text each: in the database, on the wire and in metrics.
///
/// A name that is not declared does not compile, and lists of all names need not be kept by hand.
#[macro_export]
macro_rules! names {
    ($(#[$meta:meta])* $visibility:vis enum $set:ident { $($name:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility enum $set { $(#[doc = concat!("`", $text, "`")] $name,)+ }

        impl $set {
            /// All of them, in the order of their declaration.
            $visibility const ALL: &[Self] = &[$(Self::$name),+];

            /// The text.
            #[must_use]
            $visibility const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}
